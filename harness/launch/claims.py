"""Who is at which run: advisory, so that several supervisors can share one results folder.

A claim that is wrong costs time and corrupts nothing: records are published by link, and the first one wins.
"""

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from harness.files import write_atomic

STALE_S = 120.0  # without a sign of life a claim's supervisor is gone


class Claims:
    """One supervisor's claims on the runs of a results folder: `<run>/claim.json`, its time the last sign of life."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = json.dumps({"supervisor": uuid.uuid4().hex, "host": os.uname().nodename, "pid": os.getpid()})
        self.held: set[str] = set()

    def take(self, run_id: str) -> bool:
        """Claim a run; False if another supervisor that is alive is at it."""
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
        """Give a run free again; harmless for one that is not held."""
        if run_id in self.held:
            self.held.discard(run_id)
            with suppress(OSError):
                self._path(run_id).unlink()

    def touch(self) -> None:
        """Show that this supervisor is alive."""
        for run_id in self.held:
            with suppress(OSError):
                os.utime(self._path(run_id))

    def _is_stale(self, path: Path) -> bool:
        try:
            age = time.time() - path.stat().st_mtime
            other = json.loads(path.read_text())
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # being written this moment, or torn by a crash
            return age > STALE_S
        if other.get("host") == os.uname().nodename and not Path(f"/proc/{other.get('pid')}").exists():
            return True
        return age > STALE_S

    def _path(self, run_id: str) -> Path:
        return self.folder / run_id / "claim.json"
