"""The channel between supervisor and workers: a listener that workers connect to; JSON messages, never pickle.

It works the same under plain python, torchrun and Accelerate's launcher, where stdin and extra descriptors do not.
"""

import json
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

ADDRESS, KEY = "HARNESS_CHANNEL_ADDRESS", "HARNESS_CHANNEL_KEY"  # in a worker's environment
GROUP, CPUS = "HARNESS_GROUP", "HARNESS_CPUS"  # so is its group's token, and the cores of each local rank as JSON


class Door:
    """The supervisor's side: accepts connections in a thread; `fileno` is readable when one is waiting in `take`.

    `host`: this machine's name, for workers on others; a Unix socket without it.
    """

    def __init__(self, host: str | None = None) -> None:
        self.key, self.host = os.urandom(32), host
        place = {"address": ("", 0)} if host else {"family": "AF_UNIX"}
        self.listener = Listener(**place, backlog=64, authkey=self.key)
        self.arrived: queue.SimpleQueue[tuple[Connection, dict[str, Any]]] = queue.SimpleQueue()
        self.read_end, self.write_end = os.pipe()
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def environment(self) -> dict[str, str]:
        address = self.listener.address
        return {ADDRESS: f"tcp:{self.host}:{address[1]}" if self.host else str(address), KEY: self.key.hex()}

    def fileno(self) -> int:
        return self.read_end

    def take(self) -> tuple[Connection, dict[str, Any]]:
        """The next connection and its hello: {"rank": ..., "pid": ..., "group": ..., "step": ...}."""
        os.read(self.read_end, 1)
        return self.arrived.get()

    def close(self) -> None:
        self.closed = True
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
                hello = receive(connection)
            except (OSError, EOFError, ValueError, AuthenticationError):
                if self.closed:
                    return
                continue  # a stranger, or a worker that died on the doorstep: the supervisor sees that by its pidfd
            self.arrived.put((connection, hello))
            with suppress(OSError):
                os.write(self.write_end, b"1")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def connect() -> Connection:
    """A worker's connection to its supervisor, after its hello."""
    address: str | tuple[str, int] = os.environ[ADDRESS]
    if address.startswith("tcp:"):
        _, host, port = address.split(":")
        address = (host, int(port))
    connection = Client(address, authkey=bytes.fromhex(os.environ[KEY]))
    step = os.environ.get("SLURM_STEP_ID")  # of what srun started
    send(connection, {"rank": rank(), "pid": os.getpid(), "group": os.environ.get(GROUP), "step": step})
    return connection


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """Raises EOFError when the other side is gone."""
    return json.loads(connection.recv_bytes())
