"""Connects to the door of the `harness run` of this node as soon as it listens, and says nothing until it is ended."""

import os
import re
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path


def inodes() -> set[str]:
    """Of the sockets of the supervisors of this node."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"run" in words and any(word.endswith(b"harness") for word in words):
                links = [os.readlink(link) for link in (process / "fd").iterdir()]
                found |= {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
    return found


def listening() -> set[tuple[str, int]]:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = inodes()
    places = [line[1].split(":") for line in lines if line[3] == "0A" and line[9] in ours]
    return {(socket.inet_ntoa(struct.pack("<I", int(address, 16))), int(port, 16)) for address, port in places}


def main() -> None:
    sockets: dict[tuple[str, int], list[socket.socket]] = {}
    while True:
        with suppress(OSError):
            for place in listening() - sockets.keys():
                sockets[place] = [socket.create_connection(place, 5) for _ in range(3)]
                print("connected", flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
