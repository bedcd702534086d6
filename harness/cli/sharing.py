"""How many runs share a GPU, and how, as `plan` and `run` say it."""

from collections.abc import Collection, Iterable, Sequence

from harness.doctor.findings import proven
from harness.doctor.proven import SHARING, Sharing, choose, graphs, mps_of, of_count
from harness.environment import core_count, free_memory_mib
from harness.grid import Training
from harness.job import Job, TrainJob, is_graphed
from harness.launch import memory
from harness.launch.devices import find_slots, gpus_of
from harness.launch.memory import Room
from harness.launch.pace import Paces
from harness.launch.sharing import bounds
from harness.records import Results

ON_A_CPU = "runs per device: 1 (on a CPU they would share its threads, which decide numbers)"


def share(
    wanted: int | None, gpus: Collection[str], jobs: Sequence[Job], results: Results, paces: Paces, no_mps: bool
) -> tuple[Sharing, Room]:
    """On these GPUs (UUIDs; none: on a CPU), and the memory that runs have there. `wanted`: by the user, None for
    auto.
    """
    several = [job for job in jobs if isinstance(job, TrainJob) and job.spec.processes == 1]
    if not gpus or not several or wanted == 1:
        return Sharing(wanted or 1, False, (ON_A_CPU,) if wanted is None and not gpus else ()), Room()
    room = memory.room_of(several, memory.learn(results), free_memory_mib(gpus))
    found, mps = proven("cuda", SHARING), mps_of(no_mps)
    recorded = any(is_graphed(job, "cuda") for job in several)
    if wanted is None:
        known = room if recorded else memory.with_estimates(room, several)
        bound = bounds(several, paces, known, core_count(), len(gpus), recorded)
        return choose(found, mps, bound, recorded), room
    chosen, most = of_count(found, mps, wanted, recorded), room.most()
    if most is not None and most[0] < wanted:
        line = f"memory for about {most[0]} of {wanted} at a time: {most[1]}; the others wait"
        chosen = Sharing(wanted, chosen.own, (line, *chosen.lines))
    return chosen, room


def lines(
    wanted: int | None,
    devices: str,
    trainings: Iterable[Training],
    done: Collection[str],
    results: Results,
    paces: Paces,
    no_mps: bool,
) -> tuple[str, ...]:
    """What a plan says of it; `devices`: as the user wrote them."""
    slots = find_slots(devices)
    schedules = graphs(slots[0].kind)[0]
    specs = [one.spec for one in trainings if one.spec.id not in done]
    jobs = [TrainJob(spec, (), {}, None, "", graphs=schedules) for spec in specs]
    return share(wanted, gpus_of(slots), jobs, results, paces, no_mps)[0].lines
