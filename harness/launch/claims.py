"""Who is at which run: advisory, so that several supervisors can share one results folder.

A claim that is wrong costs time and corrupts nothing: records are published by link, and the first one wins.
"""

import functools
import json
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import schema
from harness.files import write_atomic
from harness.run_folder import RunFolder
from harness.shapes import MisfitError, checker, load, require_shape

STALE_S = 120.0  # without a sign of life a claim's supervisor is gone
AHEAD_S = 10.0  # a claim from further in the future is of before a clock was set back: nobody renews it
_CLAIM = checker(schema.CLAIM)


def whoami() -> dict[str, Any]:
    """What tells this process from all others, on any node of a cluster and in any container."""
    job = {"job": os.environ["SLURM_JOB_ID"], "restart": _restarts()} if "SLURM_JOB_ID" in os.environ else {}
    return {"host": os.uname().nodename, "pid": os.getpid(), "start": _started(os.getpid()), **_space(), **job}


def is_gone(other: Mapping[str, Any], me: Mapping[str, Any], age_s: float, is_alive: bool) -> bool:
    """Whether the supervisor of a claim has ended. Pure.

    Args:
        other, me: of the claim and of who asks, as `whoami` gives them.
        age_s: since the claim's last sign of life, below 0 for one from the future.
        is_alive: whether a process with the claim's pid and start is there; it counts for a claim of this pid space.
    """
    if is_old(age_s):
        return True
    if other.get("space") is not None and other["space"] == me["space"]:
        return not is_alive
    # SLURM starts a job again only after it has ended the attempt before, or has lost its node.
    return "job" in me and other.get("job") == me["job"] and other.get("restart", 0) < me["restart"]


def is_old(age_s: float) -> bool:
    """Whether a claim's last sign of life is too long ago, or lies in the future. Pure."""
    return age_s > STALE_S or age_s < -AHEAD_S


class Claims:
    """One supervisor's claims on the runs of a results folder: `<run>/claim.json`, its time the last sign of life."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.me = whoami()
        self.content = json.dumps({"supervisor": uuid.uuid4().hex, **self.me})
        self.held: set[str] = set()

    def take(self, run_id: str) -> bool:
        """Claim a run; False if another supervisor that is alive is at it.

        Raises:
            OSError: its folder cannot be made or written.
        """
        path = self._path(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x") as stream:
                stream.write(self.content)
        except FileExistsError:
            if not self._is_stale(path):
                return False
            write_atomic(path, self.content)
        self.held.add(run_id)
        return True

    def release(self, run_id: str) -> None:
        """Give a run free again; harmless for one that is not held, or that another supervisor has taken over."""
        if run_id in self.held:
            self.held.discard(run_id)
            with suppress(OSError):
                if self._is_mine(run_id):
                    self._path(run_id).unlink()

    def touch(self) -> None:
        """Show that this supervisor is alive."""
        for run_id in self.held:
            with suppress(OSError):
                if self._is_mine(run_id):
                    os.utime(self._path(run_id))

    def _is_mine(self, run_id: str) -> bool:
        return self._path(run_id).read_text() == self.content

    def holder(self, run_id: str) -> str:
        """Who is at the run, and since when nothing was heard of him: `node7 (claim 12 s old)`."""
        try:
            other, age_s = self._read(self._path(run_id))
        except OSError:
            return "another supervisor"
        return f"{(other or {}).get('host', 'another supervisor')} (claim {max(0.0, age_s):.0f} s old)"

    def _is_stale(self, path: Path) -> bool:
        try:
            other, age_s = self._read(path)
        except FileNotFoundError:
            return True
        if other is None:
            return is_old(age_s)
        started = _started(other["pid"]) if "pid" in other else None
        is_alive = started is not None and other.get("start") in (None, started)
        return is_gone(other, self.me, age_s, is_alive)

    def _read(self, path: Path) -> tuple[dict[str, Any] | None, float]:
        """A claim and its age in seconds; None for one that is being written this moment, torn, or none at all."""
        age_s = time.time() + self._ahead_s - path.stat().st_mtime
        try:
            claim = load(path.read_bytes())
            require_shape(claim, _CLAIM)
        except MisfitError:
            return None, age_s
        return claim, age_s

    @functools.cached_property
    def _ahead_s(self) -> float:
        """Of the file system's clock to this machine's: a file server stamps files by its own."""
        with tempfile.NamedTemporaryFile(prefix=".clock.", dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime - time.time()

    def _path(self, run_id: str) -> Path:
        return RunFolder(self.folder / run_id).claim


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _space() -> dict[str, str]:
    """Within one value pids are unique: this boot of the machine, this pid namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"space": f"{boot} {os.readlink('/proc/self/ns/pid')}"}
    return {"space": uuid.uuid4().hex}  # a sandbox without /proc: nobody's pid can be looked up


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with its pid that is unique. None without such a process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
