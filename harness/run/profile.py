"""Where a run's time goes, and how near to what the device can do that is.

Its time is that of the sections which its code is divided into, see `harness.run.sections`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dskd.count import count
from dskd.distiller import Distiller
from harness.job import TrainJob
from harness.run.batches import to_images
from harness.run.device import Device, open_device
from harness.run.sections import Sections, now, take_sections

T = TypeVar("T")
NETWORKS = ("teacher", "forward", "backward", "inspect")  # sections whose operations are counted


@dataclass(frozen=True)
class Line:
    """One section.

    Attributes:
        calls: how often it ran.
        flop_per_s: operations per second that it reached, for one of NETWORKS.
        bytes_per_s: of all that its operations read and write, each by itself; what a cache or a fusion saves is in it.
    """

    name: str
    seconds: float
    calls: int
    flop_per_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class Profile:
    """Where the time of a run went, and what its device can do.

    Attributes:
        lines: the longest first, and last what lies in no section.
        matrix_flop_per_s: what the device reaches at a large matrix product of the run's precision.
        copy_bytes_per_s: what it reaches at copying, reads and writes counted.
        facts: the device's.
    """

    lines: Sequence[Line]
    wall_s: float
    matrix_flop_per_s: float
    copy_bytes_per_s: float
    facts: dict[str, Any]


def take_profile(job: TrainJob, do: Callable[[TrainJob], None]) -> Profile:
    """Do the job with `do`, in this process, and tell where its time went."""
    sections, wall_s = take_sections(lambda: do(job))
    device = open_device(job.device, job.spec.precision)
    counts = _count(job, device)
    lines = [_line(name, sections, counts.get(name)) for name, _ in sections.seconds.most_common()]
    rest = Line("other", wall_s - sum(sections.seconds.values()), 1)
    return Profile([*lines, rest], wall_s, matrix_rate(device), copy_rate(device), device.facts())


def _line(name: str, sections: Sections, counts: tuple[float, float] | None) -> Line:
    seconds, images = sections.seconds[name], sections.images[name]
    return Line(name, seconds, sections.calls[name], *(count * images / seconds for count in counts or ()))


def _count(job: TrainJob, device: Device) -> dict[str, tuple[float, float]]:
    """(operations, bytes) of each of NETWORKS for an image of a whole batch."""
    spec = job.spec
    size = spec.process_batch_size
    model = Distiller(spec.method, spec.backbone).to(device.place, memory_format=torch.channels_last)
    found = {}

    batch = to_images(torch.zeros(size, *spec.sides, 3, dtype=torch.uint8, device=device.place))
    with device.autocast():
        with torch.no_grad():
            found["teacher"], features = _counted(lambda: model.teacher(batch))
        found["forward"], loss = _counted(lambda: model.loss(batch, features))
        found["backward"], _ = _counted(loss.backward)
        with torch.inference_mode():
            found["inspect"], _ = _counted(lambda: model.eval().discrepancies(batch))
    return {name: (flop / size, traffic / size) for name, (flop, traffic) in found.items()}


def _counted(do: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    traffic = _Traffic()
    macs, result = count(traffic.watch, do)
    return (2 * macs, traffic.bytes), result


class _Traffic(TorchDispatchMode):
    """Adds up the sizes of the tensors that operations take and give; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def watch(self, do: Callable[[], T]) -> T:
        with self:
            return do()

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
        started = now()
        do()
        times.append(now() - started)
    return min(times)
