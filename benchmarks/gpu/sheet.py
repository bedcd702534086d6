"""What one block of `prove.py` finds: checks, tables and facts, on disk after each of them, so that a block that hangs
or is killed leaves what it had measured.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Sheet:
    """A block's findings.

    Args:
        path: of the JSON file.
        kind: `cuda`, or `cpu` for the same logic on small inputs.
        seconds: that the block has.
    """

    def __init__(self, path: Path, kind: str, seconds: float) -> None:
        self.path, self.kind, self.ends = path, kind, time.monotonic() + seconds
        self._saving = threading.Lock()
        self.found: dict[str, Any] = {"checks": [], "tables": {}, "facts": {}, "line": "", "skipped": ""}
        self._save()

    @property
    def small(self) -> bool:
        return self.kind == "cpu"

    @property
    def left_s(self) -> float:
        """Seconds until the block is ended from outside."""
        return self.ends - time.monotonic()

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.found["checks"].append({"name": name, "ok": bool(ok), "detail": detail})
        print(f"  {'pass' if ok else 'FAIL'}: {name}{f': {detail}' if detail else ''}", flush=True)
        self._save()

    def row(self, table: str, **cells: Any) -> None:
        self.found["tables"].setdefault(table, []).append(cells)
        print(f"  {table}: {', '.join(f'{key} {value}' for key, value in cells.items())}", flush=True)
        self._save()

    def fact(self, name: str, value: Any) -> None:
        self.found["facts"][name] = value
        print(f"  {name}: {value}", flush=True)
        self._save()

    def say(self, line: str) -> None:
        """The figures that stand beside the verdict."""
        self.found["line"] = line
        self._save()

    def skip(self, why: str) -> None:
        self.found["skipped"] = why
        self._save()

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What goes wrong within is a failed check of this name, and what comes after it goes on."""
        try:
            yield
        except Exception as error:
            self.check(name, False, " ".join(f"{type(error).__name__}: {error}".split())[:400])

    def enough(self, name: str, needs_s: float) -> bool:
        """Whether there is time for what needs so many seconds; if not, it is noted as left out."""
        if self.left_s >= needs_s:
            return True
        self.found["facts"].setdefault("left out for lack of time", []).append(name)
        self._save()
        return False

    def _save(self) -> None:
        scratch = self.path.with_suffix(".part")
        with self._saving:
            scratch.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
            os.replace(scratch, self.path)


def figures(value: float, digits: int = 3) -> str:
    """A number for a line of text."""
    return f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"
