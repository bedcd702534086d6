"""The sections that a run's time is divided into: a stop-watch that costs nothing unless somebody looks at it.

Then the device is waited for at the sections' ends, so that each one's time is its own; a run is slower for that.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_NOTHING = nullcontext()
_active: "Sections | None" = None


def section(name: str, images: int = 0) -> AbstractContextManager[None]:
    """Count the block's time under `name`, less that of sections within it, and the images that its networks see, if
    somebody looks.
    """
    return _NOTHING if _active is None else _active.measure(name, images)


def is_watched() -> bool:
    """Whether somebody looks."""
    return _active is not None


class Sections:
    """Of each section: its seconds, how often it ran, and the images that its networks saw."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.within: list[float] = []

    @contextmanager
    def measure(self, name: str, images: int) -> Iterator[None]:
        started = now()
        self.within.append(0.0)
        try:
            yield
        finally:
            took = now() - started
            self.seconds[name] += took - self.within.pop()
            self.calls[name] += 1
            self.images[name] += images
            if self.within:
                self.within[-1] += took


def take_sections(do: Callable[[], None]) -> tuple[Sections, float]:
    """What `do` spends in each section, and its seconds in all."""
    global _active
    sections = _active = Sections()
    started = now()
    try:
        do()
    finally:
        _active = None
    return sections, now() - started


def now() -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
