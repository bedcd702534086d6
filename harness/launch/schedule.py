"""What is to be done, in which order and in which parts. Pure."""

import heapq
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from dskd.config import quoted, require
from harness.data.catalog import entry_of
from harness.grid import Plan, Training
from harness.job import BenchJob, Job, TrainJob, affinity, group_of, is_compiled, shape_of
from harness.launch import pace
from harness.launch.devices import Slot, apart
from harness.launch.memory import Room
from harness.spec import BenchSpec, Save, TrainSpec

MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Item:
    """A pending job as the scheduler sees it."""

    seconds: float
    affinity: object
    shape: object = None  # of its compiled steps, if it has any


def item_of(job: Job, seconds: float) -> Item:
    spec = job.spec
    compiled = isinstance(spec, TrainSpec) and is_compiled(spec, job.device, spec.precision)
    return Item(seconds, affinity(job), shape_of(spec) if compiled else None)


@dataclass(frozen=True)
class Phase:
    """Jobs with their estimated seconds, and the places that can be at them at the same time, each of some slots.

    Args:
        room: of memory, for runs that share a GPU.
        around: is left when the phase has ended.
    """

    jobs: list[tuple[Job, float]]
    places: list[tuple[Slot, ...]]
    room: Room = field(default_factory=Room)
    around: AbstractContextManager[object] = field(default_factory=nullcontext, compare=False)


def phases(
    jobs: Sequence[tuple[Job, float]],
    slots: Sequence[Slot],
    whole: Slot,
    nodes: int = 1,
    room: Room | None = None,
    around: AbstractContextManager[object] | None = None,
) -> list[Phase]:
    """Runs of many processes first, each on as many slots; then the others, which may share GPUs and have `room` and
    `around` for themselves; then bench, one by one, on `whole`. Pure.

    With `nodes` above 1 each run is on equally many slots of every node, which are alike. `grid.check_processes` has
    seen that there are enough devices.
    """
    found = []
    for processes in sorted({group_of(job).processes for job, _ in jobs}, reverse=True):
        chosen = [pair for pair in jobs if isinstance(pair[0], TrainJob) and group_of(pair[0]).processes == processes]
        usable = slots if processes == 1 else apart(slots)
        size = processes // nodes  # of a place, on each node
        places = [tuple(usable[i * size : (i + 1) * size]) for i in range(len(usable) // size)]
        if nodes > 1:
            places = [tuple(replace(slot, node=node) for node in range(nodes) for slot in place) for place in places]
        alone = Phase(chosen, places)
        found.append(alone if processes > 1 else Phase(chosen, places, room or Room(), around or nullcontext()))
    found.append(Phase([pair for pair in jobs if isinstance(pair[0], BenchJob)], [(whole,)]))
    return [phase for phase in found if phase.jobs]


@dataclass(frozen=True)
class Todo:
    """The jobs that are left of a plan, and the ids of the works that they are of."""

    jobs: list[Job]
    left: frozenset[str]


def remaining(
    plan: Plan,
    done: Collection[str],
    *,
    results: str,
    save: Save,
    device: str,
    force: bool,
    grid: str,
    checkpoint_every_s: float,
    tracking: str | None = None,
    again: Collection[str] = (),
    graphs: Sequence[str] = (),
) -> Todo:
    """Jobs for what has no record (all with `force`): trainings with their evaluations first, then bench.

    Args:
        again: ids of measurements that are done and made once more all the same; they are not counted as left.
        graphs: see `TrainJob`.
    """
    jobs: list[Job] = []
    for training in plan.trainings:
        missing = tuple(spec for spec in training.evaluations if force or spec.id not in done)
        if missing or force or training.spec.id not in done:
            jobs.append(
                TrainJob(
                    spec=training.spec,
                    evaluations=missing,
                    source=entry_of(training.source),
                    weights_path=training.weights_path,
                    results=results,
                    save=save,
                    device=device,
                    force=force,
                    grid=grid,
                    checkpoint_every_s=checkpoint_every_s,
                    tracking=tracking,
                    names={spec.id: plan.names.get(spec.id, "") for spec in (training.spec, *missing)},
                    graphs=tuple(graphs),
                )
            )
    for spec in plan.benches:
        more = not force and spec.id in done and spec.id in again
        if force or more or spec.id not in done:
            names = {spec.id: plan.names.get(spec.id, "")}
            jobs.append(BenchJob(spec, results, device, force or more, grid, names, more))
    return Todo(jobs, frozenset(spec.id for job in jobs for spec in job.works if force or spec.id not in done))


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` to (2, 8): the third of eight. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    require(
        match is not None and int(match[2]) <= MOST_SHARDS,
        f"--shard: {quoted(text)} is not possible; write INDEX/COUNT: 0/8 to 7/8, COUNT up to {MOST_SHARDS}",
    )
    index, count = int(match[1]), int(match[2])
    require(count >= 1, f"--shard: {text} has no shards; write 0/1 for all runs")
    require(index < count, f"--shard: {text} is out of range; {count} shards are 0/{count} to {count - 1}/{count}")
    return index, count


Cost = Callable[[Training | BenchSpec], float]


def guess(run: Training | BenchSpec) -> float:
    """What a run costs by what is known without any record, so the same wherever it is asked."""
    return pace.estimate_s(run, pace.prior("cpu"))


def shards(plan: Plan, count: int, cost: Cost = guess) -> list[Plan]:
    """The plan in `count` parts of about equal cost, the longest run first to the part with the least. Pure.

    By the default cost neither what is done nor what was measured plays a part, nor the machine: all who ask get the
    same parts. With as many runs as parts or more none is empty.
    """
    runs: list[Training | BenchSpec] = [*plan.trainings, *plan.benches]
    costs = [cost(run) for run in runs]
    loads = [(0.0, part) for part in range(count)]
    part_of = {}
    for i in sorted(range(len(runs)), key=lambda i: -costs[i]):
        load, part = heapq.heappop(loads)
        part_of[i] = part
        heapq.heappush(loads, (load + costs[i], part))
    parts = [replace(plan, trainings=[], benches=[]) for _ in range(count)]
    for i, run in enumerate(runs):
        part = parts[part_of[i]]
        (part.benches if isinstance(run, BenchSpec) else part.trainings).append(run)
    return parts


def written_names(part: Plan) -> list[str]:
    """By which a journal names the runs of a part: ids, and of measurements also what is the same on every machine."""
    names = [run.spec.id for run in part.trainings]
    return names + [name for bench in part.benches for name in (bench.id, _same_everywhere(bench))]


def _same_everywhere(bench: BenchSpec) -> str:
    return replace(bench, device="", threads=0).id


def written_shard(plan: Plan, written: Mapping[int, Collection[str]], number: int) -> Plan:
    """The part of the plan that a journal of `harness submit` gives to this shard. Pure.

    What the journal does not name (the grid was changed since) is shared out over its shards as by `shards`: all
    who ask with the same plan and journal get parts that make up the plan and do not overlap.
    """
    shard_of = {name: shard for shard, names in written.items() for name in names}
    of_training = [shard_of.get(run.spec.id) for run in plan.trainings]
    of_bench = [shard_of.get(_same_everywhere(bench)) for bench in plan.benches]

    def given(shard: int | None) -> Plan:
        trainings = [run for run, own in zip(plan.trainings, of_training, strict=True) if own == shard]
        benches = [run for run, own in zip(plan.benches, of_bench, strict=True) if own == shard]
        return replace(plan, trainings=trainings, benches=benches)

    own, numbers = given(number), sorted(written)
    if number not in written:
        return own
    more = shards(given(None), len(numbers))[numbers.index(number)]
    return replace(plan, trainings=own.trainings + more.trainings, benches=own.benches + more.benches)


def take(pending: Mapping[int, Item], last: Item | None) -> int:
    """Which of the pending jobs a free worker does next, by its key in `pending`. Pure; never none of several.

    The longest of the affinity that it did `last`, else of the affinity with the most work left; and that among the
    jobs whose compiled steps have the last one's shape, else the shape with the most work left: compiling takes up to a
    minute, other images and their features take seconds. A worker is never left idle while jobs are pending, so the
    whole takes at most their sum over the workers plus the longest.
    """
    of_shape = _block(pending, operator.attrgetter("shape"), last)
    block = _block(of_shape, operator.attrgetter("affinity"), last)
    return max(block, key=lambda key: block[key].seconds)


def _block(pending: Mapping[int, Item], kind_of: Callable[[Item], object], last: Item | None) -> dict[int, Item]:
    """Those of the last one's kind, else of the kind with the most work left."""
    work: dict[object, float] = {}
    for item in pending.values():
        work[kind_of(item)] = work.get(kind_of(item), 0.0) + item.seconds
    is_left = last is not None and kind_of(last) in work
    chosen = kind_of(last) if is_left else max(work, key=work.__getitem__)
    return {key: item for key, item in pending.items() if kind_of(item) == chosen}


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
