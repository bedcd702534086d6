"""A training's state on disk, while it is not done: one that is stopped goes on where it stopped, to the same numbers.

The same to the last bit on the same device, number of threads and versions: the state is all that a step reads and
changes, generators of random numbers included. Of a run on several processes rank 0 writes the file, with what the
ranks have in common and with each one's own (`OfRank`), and all read it.
"""

import copy
import functools
import logging
import os
import shutil
import stat
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.files import write_atomic
from harness.run.device import Device
from harness.run_folder import RunFolder

FORMAT = 1
SAVE, STOP = 1, 2  # what a rank may want after a step
log = logging.getLogger(__name__)


class Interrupted(RuntimeError):  # noqa: N818
    """The work was told to stop; its message says what the next call does."""


class Stateful(Protocol):
    """What can be saved: a module, an optimizer, a schedule, or anything else that offers the same."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


Parts = Mapping[str, Stateful]


class OfRank:
    """A part that differs from rank to rank: each one's state is saved, and each gets its own back."""

    def __init__(self, part: Stateful, device: Device) -> None:
        self.part, self.device = part, device

    def state_dict(self) -> list[Any]:
        return self.device.everyones(self.part.state_dict())

    def load_state_dict(self, state: list[Any]) -> None:
        self.part.load_state_dict(state[self.device.rank])


class ShardedEngine:
    """DeepSpeed's engine as a part: parameters and optimizer lie in pieces on the ranks, and it writes and reads them
    by itself, in a folder of their own that the state names.

    It reads them as pickles, which can run code: only what nobody else could have written is handed to it.
    """

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def state_dict(self) -> dict[str, str]:
        tag = f"step-{self.engine.global_steps}"
        self.engine.save_checkpoint(str(self.folder), tag=tag, save_latest=False)
        for path in (self.folder, self.folder / tag, *(self.folder / tag).iterdir()):
            if path.stat().st_uid == os.geteuid():  # under any umask
                path.chmod(0o700 if path.is_dir() else 0o600)
        return {"tag": tag}

    def load_state_dict(self, state: dict[str, str]) -> None:
        pieces = self.folder / state["tag"]
        check_ours((self.folder, pieces, *pieces.iterdir()))
        for path in pieces.glob("*.pt"):
            check_whole(path)
        self.engine.load_checkpoint(str(self.folder), tag=state["tag"])


class Checkpointing:
    """When and where the state of one training is saved. All ranks call its methods.

    Args:
        folder: of the training.
        run_id: its id. A file of another run, kind of device, precision, version of torch or of steps is not loaded.
        every_s: seconds from one save to the next.
        stop: once it is set, the next step is the last one.
        parts: what the caller wants to be saved and restored with the training.
    """

    def __init__(
        self,
        folder: RunFolder,
        run_id: str,
        device: Device,
        every_s: float = 600.0,
        stop: threading.Event | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.path, self.shards = folder.checkpoint, folder.checkpoint_shards
        self.about = {
            "format": FORMAT,
            "run": run_id,
            "device": device.place.type,
            "precision": device.precision,
            "torch": str(torch.__version__),
            **device.steps,
        }
        self.device, self.every_s, self.stop = device, every_s, stop or threading.Event()
        self.parts = {**(parts or {}), "generators": OfRank(_Generators(device.place), device)}
        self.resumed = 0  # how often this training was
        self.earlier_s = 0.0
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the training began, less what lay between its attempts and less what was lost with one that died."""
        return self.earlier_s + time.monotonic() - self.started

    def restore(self, parts: Parts) -> bool:
        """Put the parts into the state that was saved; False if there is none, or none that every rank can use (the log
        says why): then they stay as they are.
        """
        if not self.device.agree(self.path.exists()):
            return False
        parts = {**parts, **self.parts}
        fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        usable = True
        try:
            document = _read(self.path, self.about)
            resumed, earlier_s = document["resumed"] + 1, document["seconds"]
            for name, part in parts.items():
                part.load_state_dict(document["state"][name])
        except Exception as error:  # whatever is wrong with a file, it must not stand in the training's way
            log.warning("%s cannot be used, the training starts anew: %s: %s", self.path, type(error).__name__, error)
            usable = False
        if self.device.most(not usable):
            for name, part in parts.items():
                part.load_state_dict(fresh[name])
            return False
        self.resumed, self.earlier_s = resumed, earlier_s
        return True

    def after_step(self, parts: Parts, where: str) -> None:
        """Save the parts if it is time to, for any rank. That waits for the device; otherwise nothing does.

        Raises:
            Interrupted: after saving, if `stop` is set on any rank; the message tells `where` the training stopped.
        """
        wanted = STOP if self.stop.is_set() else SAVE if time.monotonic() - self.saved >= self.every_s else 0
        wanted = self.device.most(wanted)
        if not wanted:
            return
        outlook = "the next call goes on from there"
        try:
            self._save({**parts, **self.parts})
        except (OSError, RuntimeError) as error:  # a full disk: the training may still end well
            outlook = f"that could not be saved ({error})"
            log.warning("no checkpoint %s: %s", where, error)
        self.saved = time.monotonic()
        if wanted == STOP:
            self.device.wait()  # a rank that ends takes the others along, and one of them writes
            raise Interrupted(f"stopped {where}; {outlook}")

    def _save(self, parts: Parts) -> None:
        document = {
            "about": self.about,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "state": {name: part.state_dict() for name, part in parts.items()},
        }
        if self.device.main:
            write_atomic(self.path, functools.partial(torch.save, document))
            for older in sorted(self.shards.glob("step-*"), key=os.path.getmtime)[:-1]:
                shutil.rmtree(older, ignore_errors=True)


def discard(folder: RunFolder) -> None:
    """Remove a training's checkpoint, and what saves that were killed have left."""
    for path in (folder.checkpoint, *folder.path.glob(f".{folder.checkpoint.name}.*")):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoint_shards, ignore_errors=True)


def check_ours(paths: Iterable[Path]) -> None:
    """Raises ValueError for a file or folder that another user owns or may write to, or that is a link."""
    for path in paths:
        found = path.lstat()
        ours = found.st_uid == os.geteuid() and not found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode)
        if not ours:
            raise ValueError(f"{path} is not this user's alone (owner {found.st_uid}, mode {found.st_mode & 0o777:o})")


def check_whole(path: Path) -> None:
    """Every byte of a file of torch.save, which torch.load does not. Raises zipfile.BadZipFile or ValueError."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in {path.name} is damaged")


def _read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Raises OSError, zipfile.BadZipFile, ValueError for a damaged or a foreign file, and what torch.load raises."""
    check_whole(path)
    document = torch.load(path, map_location="cpu", weights_only=True)
    for key, value in about.items():
        if (found := document["about"].get(key)) != value:
            raise ValueError(f"its {key} is {found}, not {value}")
    return document


class _Generators:
    """torch's generators of random numbers, on the host and on the device; a training draws from no others."""

    def __init__(self, place: torch.device) -> None:
        self.place = place

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.place.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.place)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.place.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.place)
