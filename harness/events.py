"""What is told of a job: by its workers to the supervisor, as JSON over the channel, and by the supervisor to those who
listen to it (the screen, the file for `harness status`).
"""

import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dskd.config import field_types
from harness.spec import Kind


class ForeignMessage(ValueError):  # noqa: N818
    """What came over a connection is no event of a worker; its text says what it was."""


@dataclass(frozen=True)
class Ready:
    """A process of a group can take a job."""


@dataclass(frozen=True)
class Alive:
    """A sign of life, whatever the process is at."""


@dataclass(frozen=True)
class Phase:
    """A part of the job has begun: data, teacher, train, evaluate or bench. `part`: from 1, of the job's `parts`
    trainings, where it has several.
    """

    phase: str
    part: int = 1
    parts: int = 1

    @property
    def shown(self) -> str:
        """`train`, or `train 2/6`."""
        return self.phase if self.parts == 1 else f"{self.phase} {self.part}/{self.parts}"


@dataclass(frozen=True)
class Step:
    """How far the phase is."""

    done: int
    total: int


@dataclass(frozen=True)
class Epoch:
    """An epoch of the training has ended. `loss` is no number where it diverged."""

    epoch: int
    epochs: int
    loss: float
    images_per_s: float


@dataclass(frozen=True)
class Noted:
    """Who watches should know this while the job is on."""

    message: str


@dataclass(frozen=True)
class Recorded:
    """A piece of work ended in a record. `result`: the few values of it that a screen shows."""

    kind: Kind
    id: str
    wall_s: float
    result: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A piece of work failed, and will not be tried again. `reason`: see `harness.records.Failure`."""

    id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Unwritable:
    """The disk of the results is full or lost."""

    message: str


@dataclass(frozen=True)
class Done:
    """A process is through with its job. `leaving`: it takes no further one."""

    leaving: bool = False


FromWorker = Ready | Alive | Phase | Step | Epoch | Noted | Recorded | Failed | Unwritable | Done


@dataclass(frozen=True)
class Retrying:
    """A piece of work failed, and its job will be tried again."""

    id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Stopping:
    """The job was told to stop."""


@dataclass(frozen=True)
class Waiting:
    """Only jobs of other supervisors are left. `message`: for which is waited, and who is at it."""

    message: str


@dataclass(frozen=True)
class GivenUp:
    """A place where no worker can start, or whose device fails, is left out."""

    message: str


@dataclass(frozen=True)
class Finished:
    """Nothing more will be heard of the job."""


Event = FromWorker | Retrying | Stopping | Waiting | GivenUp | Finished
Emit = Callable[[FromWorker], None]

_KINDS: dict[str, type] = {
    "ready": Ready,
    "alive": Alive,
    "phase": Phase,
    "step": Step,
    "epoch": Epoch,
    "noted": Noted,
    "record": Recorded,
    "failed": Failed,
    "unwritable": Unwritable,
    "done": Done,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(event: FromWorker) -> bytes:
    return json.dumps({"event": _NAMES[type(event)], **vars(event)}).encode()


def decode(content: bytes) -> FromWorker:
    """Raises ForeignMessage for what is no event of a worker."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ForeignMessage(f"a message that is no JSON: {content[:60]!r}") from None
    cls = _KINDS.get(str(found.get("event"))) if isinstance(found, dict) else None
    if cls is None:
        raise ForeignMessage(f"a message that is no event: {content[:60]!r}")
    fields = {}
    for name, kind in field_types(cls).items():
        if name not in found and hasattr(cls, name):
            continue
        kind = typing.get_origin(kind) or kind
        accepted = {float: (int, float), typing.Literal: str}.get(kind, kind)
        if not isinstance(found.get(name), accepted):
            raise ForeignMessage(f"an event `{found['event']}` whose `{name}` is {str(found.get(name))[:60]!r}")
        fields[name] = found[name]
    return cls(**fields)
