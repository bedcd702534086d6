"""The channel between supervisor and workers: a listener that workers connect to; JSON messages, never pickle.

It works the same under plain python, torchrun and Accelerate's launcher, where stdin and extra descriptors do not.
"""

import ipaddress
import json
import os
import queue
import socket
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

from harness.events import ForeignMessage, FromWorker, decode

ADDRESS, KEY = "HARNESS_CHANNEL_ADDRESS", "HARNESS_CHANNEL_KEY"  # in a worker's environment
GROUP, CPUS = "HARNESS_GROUP", "HARNESS_CPUS"  # so is its group's token, and the cores of each local rank as JSON
HANDSHAKE_S = 30.0  # from a connection to its hello: of one that is ours milliseconds, on a slow disk seconds
MOST_BYTES = 2**24  # of one message: a longer one is not ours
LONGEST_SOCKET_PATH = 100  # bytes, of the 108 that the kernel takes


class Door:
    """The supervisor's side: lets workers in; `fileno` is readable when one is waiting in `take`.

    Each connection is asked for the key in a thread of its own, within HANDSHAKE_S: who stays silent, or does not know
    the key, is counted in `strangers` and keeps nobody out.

    Args:
        host: this machine's name, for workers on others: then it listens on that address alone, or on all where the
            name means the machine itself (127.0.1.1). A Unix socket without it.
    """

    def __init__(self, host: str | None = None) -> None:
        self.key, self.host = os.urandom(32), host
        self.strangers = 0
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        if host:
            self.socket = socket.create_server((_own_address(host), 0), backlog=64)
        else:
            self.folder = tempfile.TemporaryDirectory(prefix="harness-", dir=_socket_parent())
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(f"{self.folder.name}/door")
            self.socket.listen(64)
        self.arrived: queue.SimpleQueue[tuple[Connection, dict[str, Any]]] = queue.SimpleQueue()
        self.read_end, self.write_end = os.pipe()
        self.closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def environment(self) -> dict[str, str]:
        name = self.socket.getsockname()
        if not self.host:
            return {ADDRESS: name, KEY: self.key.hex()}
        ip, port = name
        return {ADDRESS: f"tcp:{self.host if ip == '0.0.0.0' else ip}:{port}", KEY: self.key.hex()}

    def fileno(self) -> int:
        return self.read_end

    def take(self) -> tuple[Connection, dict[str, Any]]:
        """The next connection and its hello: {"rank": ..., "pid": ..., "group": ..., "step": ...}."""
        os.read(self.read_end, 1)
        return self.arrived.get()

    def close(self) -> None:
        self.closed.set()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # `accept` does not wake up for a close
        self.socket.close()
        if self.folder is not None:
            self.folder.cleanup()

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                peer, _ = self.socket.accept()
            except OSError:  # too many open files, say: later there may be fewer
                self.closed.wait(0.1)
                continue
            threading.Thread(target=self._greet, args=(peer,), daemon=True).start()

    def _greet(self, peer: socket.socket) -> None:
        """Let one in that knows the key, within the time limit."""
        connection = Connection(os.dup(peer.fileno()))
        limit = threading.Timer(HANDSHAKE_S, peer.shutdown, [socket.SHUT_RDWR])
        limit.daemon = True
        limit.start()
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            hello = _hello(connection)
        except Exception:  # whatever a stranger does, or a worker that dies on the doorstep
            self.strangers += 1
            connection.close()
        else:
            self.arrived.put((connection, hello))
            with suppress(OSError):
                os.write(self.write_end, b"1")
        finally:
            limit.cancel()
            peer.close()


def _own_address(host: str) -> str:
    """The IPv4 address to listen on, so that other nodes reach it by the host's name. All where the name tells none."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return "0.0.0.0"
    return "0.0.0.0" if ipaddress.ip_address(address).is_loopback else address


def _socket_parent() -> str:
    """The folder for temporary files, or /tmp where its path is too long for a socket's."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) + len("/harness-12345678/door") <= LONGEST_SOCKET_PATH else "/tmp"


def _hello(connection: Connection) -> dict[str, Any]:
    hello = json.loads(connection.recv_bytes(MOST_BYTES))
    if not isinstance(hello, dict) or not isinstance(hello.get("rank"), int) or not isinstance(hello.get("pid"), int):
        raise ForeignMessage("no hello")
    return hello


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
    hello = {"rank": rank(), "pid": os.getpid(), "group": os.environ.get(GROUP), "step": step}
    connection.send_bytes(json.dumps(hello).encode())
    return connection


def receive(connection: Connection) -> FromWorker:
    """The next event of a worker.

    Raises:
        EOFError, OSError: the other side is gone.
        ForeignMessage: what came is no event.
    """
    return decode(connection.recv_bytes(MOST_BYTES))
