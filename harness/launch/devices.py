"""Which devices a grid may fill, and how many runs each takes at a time. No torch is imported here."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dskd.config import ConfigError, quoted, require
from harness.environment import Gpu, by_topology, gpus, thread_count

Kind = Literal["cpu", "cuda"]
MOST_WORKERS = 1024  # on the CPU


@dataclass(frozen=True)
class Slot:
    """Where one worker process may run.

    Args:
        visible: what CUDA_VISIBLE_DEVICES must be for it, None for a CPU.
        cpus: the cores that it is pinned to.
        threads: so many it computes with.
        node: of a SLURM job whose runs span nodes, 0 for this machine.
        pipes: of the MPS daemon through which it shares its GPU; empty where none is ours.
    """

    name: str
    kind: Kind
    visible: str | None
    cpus: tuple[int, ...]
    threads: int
    node: int = 0
    pipes: str = ""


def kind_of(devices: str) -> Kind:
    """What a `--devices` comes to on this machine. Raises ConfigError for one that cannot be meant or is not here."""
    kind, _ = _parse(devices, _found(devices))
    return kind


def find_slots(devices: str, runs_per_device: int = 1) -> list[Slot]:
    """The slots that `--devices` and `--runs-per-device` name on this machine.

    Raises:
        ConfigError: devices that cannot be meant or that the machine lacks.
    """
    found = _found(devices)
    kind, chosen = _parse(devices, found)
    cores = by_topology(os.sched_getaffinity(0))
    if kind == "cpu":
        return share_cores([("cpu", "cpu", None)] * (chosen[0] * runs_per_device), cores, thread_count())
    names = [(f"cuda:{index}", "cuda", found[index].uuid) for index in chosen for _ in range(runs_per_device)]
    # Each gets cores of its own processor, as far as they go: the first ones to who hangs on the first one.
    near = [
        min(map(cores.index, found[index].near & set(cores)), default=0)
        for index in chosen
        for _ in range(runs_per_device)
    ]
    order = sorted(range(len(names)), key=near.__getitem__)
    dealt = dict(zip(order, share_cores([names[i] for i in order], cores, thread_count()), strict=True))
    return [dealt[i] for i in range(len(names))]


def apart(slots: Sequence[Slot]) -> list[Slot]:
    """One slot of each GPU, or all of a CPU: what the ranks of one run may have, which cannot share a GPU."""
    return list({slot.visible or i: replace(slot, pipes="") for i, slot in enumerate(slots)}.values())


def gpus_of(slots: Sequence[Slot]) -> list[str]:
    """What names each GPU of the slots to CUDA; none of a CPU."""
    return list(dict.fromkeys(slot.visible for slot in slots if slot.visible))


def whole_machine(slots: Sequence[Slot]) -> Slot:
    """The first device with all cores, for a measurement that nothing else may disturb."""
    return Slot(slots[0].name, slots[0].kind, slots[0].visible, tuple(sorted(os.sched_getaffinity(0))), thread_count())


def share_cores(places: Sequence[tuple[str, Kind, str | None]], cores: Sequence[int], threads: int) -> list[Slot]:
    """Deal `cores` and `threads` to (name, kind, visible) places, so that no two workers oversubscribe them. Pure.

    With as many places as cores or more, each computes with one thread and none is pinned: the kernel balances them.
    """
    count = len(places)
    if count >= min(len(cores), threads):
        return [Slot(*place, tuple(cores), max(1, threads // count)) for place in places]
    bounds = [len(cores) * i // count for i in range(count + 1)]
    chunks = [tuple(cores[low:high]) for low, high in itertools.pairwise(bounds)]
    return [
        Slot(*place, chunk, max(1, min(len(chunk), threads // count)))
        for place, chunk in zip(places, chunks, strict=True)
    ]


def _found(devices: str) -> Sequence[Gpu]:
    """The GPUs that may be meant: none are looked for where the CPU is."""
    return gpus() if devices.startswith(("auto", "cuda")) else []


def _parse(devices: str, found: Sequence[Gpu]) -> tuple[Kind, list[int]]:
    """The kind, and for a CPU how many workers, for GPUs which of those `found`."""
    match = re.fullmatch(r"(auto|cpu|cuda)(?::([0-9]{1,6}(?:,[0-9]{1,6})*))?", devices)
    numbers = [int(number) for number in match[2].split(",")] if match and match[2] else []
    on_cpu = match is not None and (match[1] == "cpu" or (match[1] == "auto" and not found))
    require(
        match is not None
        and not (match[1] == "auto" and numbers)
        and not (on_cpu and (len(numbers) > 1 or 0 in numbers or max(numbers, default=1) > MOST_WORKERS))
        and len(set(numbers)) == len(numbers),
        f"--devices: {quoted(devices)} is not possible; write auto, cpu, cpu:4 (4 workers), cuda or cuda:0,2 (these "
        "GPUs)",
    )
    if on_cpu:
        return "cpu", numbers or [1]
    if not found:
        raise ConfigError(f"--devices: {devices!r} needs a CUDA device and this machine shows none; write cpu")
    for number in numbers:
        require(number < len(found), f"--devices: there is no GPU {number}; this machine shows {len(found)}, from 0")
    return "cuda", numbers or list(range(len(found)))
