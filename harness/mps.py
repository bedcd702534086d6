"""NVIDIA's MPS, through which the kernels of several processes run on a GPU at the same time: whether a daemon serves
this environment, one for a block, and one for each GPU that a supervisor puts several runs on.

A supervisor's daemon is shared with the same user's other supervisors on that GPU and ends with the last of them,
however that one ends. So each has a guard for each GPU, a process of its own (this file, run as a module), which reads
from a pipe that its supervisor holds: at its end, which the kernel makes even after SIGKILL, the guard leaves. Who is
there is told by locks, which the kernel takes back too. No share of a GPU is set (CUDA_MPS_ACTIVE_THREAD_PERCENTAGE):
with fewer multiprocessors other kernels are chosen, which give other numbers.
"""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMON, SERVER = "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"
PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
PIPES = Path("/tmp/nvidia-mps")  # where CUDA looks for a daemon unless PIPE_DIRECTORY says otherwise
START_S, QUIT_S = 20.0, 5.0  # until a daemon has started; until it ends what its clients are at
LONGEST = 100  # bytes of a socket's path, of the 108 that the kernel takes
USERS = "users"  # the file in a daemon's folder that its guards hold shared locks on
TROUBLE = (OSError, RuntimeError, subprocess.SubprocessError)


def with_mps() -> bool:
    """Whether an MPS daemon serves this environment's processes."""
    return _pid(Path(os.environ.get(PIPE_DIRECTORY) or PIPES)) is not None


def _pid(pipes: Path) -> int | None:
    """Of the daemon that has its pipes there, if it lives."""
    with suppress(OSError, ValueError):
        pid = int((pipes / f"{DAEMON}.pid").read_text())
        return pid if _is(DAEMON, pid) else None
    return None


def _is(name: str, pid: int) -> bool:
    """Whether that program runs as the process; one that has ended has no command line any more."""
    with suppress(OSError):
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextmanager
def daemon(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of clients of an own daemon for all GPUs of this environment, which has its pipes and logs in the
    folder and has ended when the block has. The system's is left alone.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: there is none, or it does not start.
    """
    try:
        yield _start(folder)
    finally:
        _stop(folder)


def _environment(folder: Path) -> dict[str, str]:
    return {PIPE_DIRECTORY: str(folder / "pipes"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "logs")}


def _start(folder: Path, gpu: str | None = None) -> dict[str, str]:
    """Start a daemon, for that GPU alone; its clients' environment. Raises as `daemon`."""
    own = _environment(folder)
    for place in own.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    said = folder / "logs" / "start"
    around = os.environ | own | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    with said.open("wb") as output:  # no pipe, which the daemon would keep open
        how = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        code = subprocess.run([DAEMON, "-d"], check=False, env=around, timeout=START_S, **how).returncode
    ends = time.monotonic() + QUIT_S
    while not code and _pid(folder / "pipes") is None and time.monotonic() < ends:
        time.sleep(0.02)
    if code or _pid(folder / "pipes") is None:
        words = " ".join(said.read_text(errors="replace").split())[-200:]
        raise RuntimeError(f"{DAEMON} does not start{f', it exits with {code}' * bool(code)}: {words or 'no word why'}")
    return own


def _stop(folder: Path) -> None:
    """End the daemon there, if there is one, with its servers: by its own command, else by force."""
    pid = _pid(folder / "pipes")
    if pid is None:
        return
    family = [(DAEMON, pid), *((SERVER, child) for child in children(pid))]
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 2 * QUIT_S}
    with suppress(OSError, subprocess.SubprocessError):
        words = f"quit -t {QUIT_S:.0f}\n".encode()
        subprocess.run([DAEMON], input=words, check=False, env=os.environ | _environment(folder), **how)
    ends = time.monotonic() + QUIT_S
    while any(_is(*one) for one in family):
        if time.monotonic() >= ends:
            for name, one in family:
                with suppress(OSError):
                    if _is(name, one):
                        os.kill(one, signal.SIGKILL)
            return
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process started itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def folder_of(gpu: str) -> Path:
    """Of the daemon of this user for a GPU, by what names it to CUDA: its UUID."""
    own = Path(f"harness-mps-{os.getuid()}", re.sub("[^A-Za-z0-9-]", "-", gpu))
    parent = Path(tempfile.gettempdir())
    longest = len(os.fsencode(parent / own / "pipes" / "control_privileged"))
    return (parent if longest <= LONGEST else Path("/tmp")) / own


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Let one process at a time decide about the folder, which is made where it is not there; it may be removed within.

    Raises:
        OSError: it cannot be made or is somebody else's.
    """
    while True:
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            about = folder.parent.lstat()
            if about.st_uid != os.getuid() or about.st_mode & 0o077:
                raise PermissionError(f"{folder.parent} is not this user's alone")
            folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # who was here before is just removing it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            there = None
            with suppress(FileNotFoundError):
                there = os.stat(folder)
            if there is not None and os.path.samestat(os.fstat(handle), there):
                yield
                return
        finally:
            os.close(handle)


def _join(folder: Path, gpu: str) -> int:
    """Be served by the folder's daemon, which is started where none lives; the handle of the lock that says so. Raises
    as `daemon`.
    """
    with _gate(folder):
        users = os.open(folder / USERS, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _pid(folder / "pipes") is None:
                if _nobody(folder):  # what a daemon has left that died
                    for name in ("pipes", "logs"):
                        shutil.rmtree(folder / name, ignore_errors=True)
                _start(folder, gpu)
            fcntl.flock(users, fcntl.LOCK_SH)
        except BaseException:
            os.close(users)
            raise
    return users


def _leave(folder: Path, users: int | None = None) -> None:
    """Who was the last ends the daemon and removes the folder."""
    with suppress(OSError):
        with _gate(folder):
            if users is not None:
                os.close(users)
            if _nobody(folder):
                _stop(folder)
                shutil.rmtree(folder, ignore_errors=True)
        folder.parent.rmdir()  # unless there are those of other GPUs


def _nobody(folder: Path) -> bool:
    """Whether no guard holds the lock. To be asked within the gate."""
    try:
        with (folder / USERS).open("r+") as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


class Daemons:
    """A supervisor's daemons, one for each of these GPUs (UUIDs) that one could be started or is shared for.

    Attributes:
        pipes: by GPU, what PIPE_DIRECTORY must be for its clients.
        failures: by GPU, why there is none.
    """

    def __init__(self, gpus: Iterable[str] = ()) -> None:
        self.pipes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._guards: dict[str, subprocess.Popen[bytes]] = {}
        for gpu in dict.fromkeys(gpus):
            try:
                self._guards[gpu] = _guard(gpu)
            except OSError as error:  # no process or descriptor is left
                self.failures[gpu] = str(error)
        ends = time.monotonic() + 2 * START_S
        for gpu, guard in self._guards.items():
            there = select.select([guard.stdout], [], [], max(0.0, ends - time.monotonic()))[0]
            word = guard.stdout.readline().decode(errors="replace").strip() if there else "nothing is heard of it"
            if word == "ready":
                self.pipes[gpu] = _environment(folder_of(gpu))[PIPE_DIRECTORY]
            else:
                self.failures[gpu] = word.removeprefix("failed: ") or "its guard died"

    def __enter__(self) -> "Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them. What others use lives on, the rest has ended then."""
        for guard in self._guards.values():
            guard.stdin.close()
        for gpu, guard in self._guards.items():
            with suppress(subprocess.TimeoutExpired):
                guard.wait(START_S + 4 * QUIT_S)
            if guard.returncode != 0:  # somebody has killed it, or it hangs
                guard.kill()
                guard.wait()
                _leave(folder_of(gpu))
            guard.stdout.close()
        self._guards.clear()


def _guard(gpu: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "harness.mps", str(folder_of(gpu)), gpu]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **pipes)  # Ctrl-C is for the supervisor


def main() -> None:
    """A guard: `python -m harness.mps FOLDER GPU`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # not ignored, which the daemon would inherit
    folder, gpu = Path(sys.argv[1]), sys.argv[2]
    try:
        users = _join(folder, gpu)
    except TROUBLE as error:
        _leave(folder)
        os.write(1, f"failed: {' '.join(str(error).split())}\n".encode())
        return
    with suppress(OSError):  # the supervisor is gone already
        os.write(1, b"ready\n")
    sys.stdin.buffer.read()
    _leave(folder, users)


if __name__ == "__main__":
    main()
