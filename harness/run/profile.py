"""Where a run's time goes, and how near to what the device can do that is.

The code of a run is divided into sections, which cost nothing unless a profile is taken. Then the device is waited for
at their ends, so that each one's time is its own; a run is slower for that.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dskd.distiller import Distiller
from harness.job import TrainJob
from harness.run.device import Device, open_device, to_images

_NOTHING = nullcontext()
_active: "_Sections | None" = None
NETWORKS = ("teacher", "forward", "backward", "inspect")  # sections whose operations are counted


def section(name: str, images: int = 0) -> AbstractContextManager[None]:
    """Count the block's time under `name`, less that of sections within it, and the images that its networks see, if a
    profile is being taken.
    """
    return _NOTHING if _active is None else _active.measure(name, images)


class _Sections:
    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.within: list[float] = []

    @contextmanager
    def measure(self, name: str, images: int) -> Iterator[None]:
        started = _now()
        self.within.append(0.0)
        try:
            yield
        finally:
            took = _now() - started
            self.seconds[name] += took - self.within.pop()
            self.calls[name] += 1
            self.images[name] += images
            if self.within:
                self.within[-1] += took


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Line:
    """One section: its seconds, how often it ran, and for those of NETWORKS what it reached.

    `bytes_per_s` counts what its operations read and write, each by itself; what a cache or a fusion saves is in it.
    """

    name: str
    seconds: float
    calls: int
    flop_per_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class Profile:
    """`lines`: the longest first, and last what lies in no section; `facts`: the device's.

    `matrix_flop_per_s`, `copy_bytes_per_s`: what the device reaches at a large matrix product of the run's precision,
    and at copying (reads and writes counted).
    """

    lines: Sequence[Line]
    wall_s: float
    matrix_flop_per_s: float
    copy_bytes_per_s: float
    facts: dict[str, Any]


def take_profile(job: TrainJob, do: Callable[[TrainJob], None]) -> Profile:
    """Do the job with `do`, in this process, and tell where its time went."""
    sections, wall_s = _take(lambda: do(job))
    device = open_device(job.device, job.spec.precision)
    counts = _count(job, device)
    lines = [_line(name, sections, counts.get(name)) for name, _ in sections.seconds.most_common()]
    rest = Line("other", wall_s - sum(sections.seconds.values()), 1)
    return Profile([*lines, rest], wall_s, matrix_rate(device), copy_rate(device), device.facts())


def section_seconds(do: Callable[[], None]) -> dict[str, float]:
    """What `do` spends in each section, and in all as `wall`."""
    sections, wall_s = _take(do)
    return {**sections.seconds, "wall": wall_s}


def _take(do: Callable[[], None]) -> tuple[_Sections, float]:
    global _active
    sections = _active = _Sections()
    started = _now()
    try:
        do()
    finally:
        _active = None
    return sections, _now() - started


def _line(name: str, sections: _Sections, counts: tuple[float, float] | None) -> Line:
    seconds, images = sections.seconds[name], sections.images[name]
    return Line(name, seconds, sections.calls[name], *(count * images / seconds for count in counts or ()))


def _count(job: TrainJob, device: Device) -> dict[str, tuple[float, float]]:
    """(operations, bytes) of each of NETWORKS for an image of a whole batch."""
    spec = job.spec
    size = spec.process_batch_size
    model = Distiller(spec.method, spec.backbone).to(device.place, memory_format=torch.channels_last)
    found = {}

    batch = to_images(torch.zeros(size, spec.side, spec.side, 3, dtype=torch.uint8, device=device.place))
    with device.autocast():
        with torch.no_grad():
            found["teacher"], features = _counted(lambda: model.teacher(batch))
        found["forward"], loss = _counted(lambda: model.loss(batch, features))
        found["backward"], _ = _counted(loss.backward)
        with torch.inference_mode():
            found["inspect"], _ = _counted(lambda: model.eval().discrepancies(batch))
    return {name: (flop / size, traffic / size) for name, (flop, traffic) in found.items()}


def _counted(do: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        result = do()
    return (flops.get_total_flops(), traffic.bytes), result


class _Traffic(TorchDispatchMode):
    """Adds up the sizes of the tensors that operations take and give; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return result


def matrix_rate(device: Device) -> float:
    """Operations per second (a multiply-add is two) of a large product in the device's precision."""
    side = 8192 if device.place.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device.place, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: left @ right)


def copy_rate(device: Device) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source))


def _fastest(do: Callable[[], Any]) -> float:
    times = []
    for _ in range(8):
        started = _now()
        do()
        times.append(_now() - started)
    return min(times)
