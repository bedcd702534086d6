"""Several runs on one GPU: how many, by which MPS daemon, and who waits for memory.

Workers are `tests/scripts/fake_worker.py`, which needs no torch, and the daemon is a stand-in too.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dskd import get_method, replace
from dskd.config import to_mapping
from harness import environment, events
from harness.environment import Gpu, free_memory_mib
from harness.job import BenchJob, Job, TrainJob
from harness.launch import group
from harness.launch.devices import Slot, apart, whole_machine
from harness.launch.memory import CONTEXT_MIB, KEPT, PIECES, Room, learn, room_of, with_estimates
from harness.launch.pace import PRIOR, Pace, Paces, prior
from harness.launch.schedule import Phase, phases
from harness.launch.sharing import Bound, bounds
from harness.launch.supervisor import supervise
from harness.launch.verdict import Limits
from harness.records import Record, Results
from harness.spec import BenchSpec, Data, TrainSpec, Weights
from tests.conftest import ROOT
from tests.faults.commands import harness
from tests.launch.test_devices import Nvml, nvml  # noqa: F401

GPU = "GPU-0aa"
FOUND = {
    "images_per_s": {"1": 800.0, "2": 1500.0, "4": 1600.0},
    "images_per_s_with_mps": {"1": 800.0, "2": 1600.0, "4": 3100.0},
    "made_at": "2026-11-26T12:00:00+00:00",
}


def job(seed: int = 0, images: int = 100, name: str = "stfpm", **changes: object) -> TrainJob:
    method = replace(get_method(name), {"train.epochs": 10, "train.batch_size": 16})
    data = Data("a", "b", "c", train_images=images, test_images=20)
    return TrainJob(TrainSpec(method, "resnet18", Weights(), data, seed, **changes), (), {}, None, ".", device="cuda")


def record(one: TrainJob, peak: float, kept: str = "device", **more: object) -> Record:
    images = one.spec.train_images
    result = {"train_s": 10.0, "device_type": "cuda", "train_images": images, "held_out_images": 0, "epochs": 10}
    result |= {"peak_device_memory_mib": peak, "precision": "bf16", "teacher_features": kept, "images_per_s": 1.0}
    result |= {"loss_first": 1.0, "loss_last": 0.5} | more
    return Record("train", one.spec.id, to_mapping(one.spec), result, {}, "2026-01-01T00:00:00+00:00", 1.0)


def need(peak: float) -> float:
    return pytest.approx(PIECES * peak + CONTEXT_MIB)


def test_what_a_run_takes_is_what_one_of_its_shape_took(tmp_path: Path) -> None:
    results, alike = Results(tmp_path), [job(seed, images=200) for seed in range(3)]
    results.publish(record(alike[0], 3000.0))
    results.publish(record(alike[1], 2500.0))
    results.publish(record(job(images=100, image_size=512), 9000.0))
    results.publish(record(job(images=100, precision="fp32"), 5000.0, device_type="cpu"))
    seen = learn(results)
    more, fewer = job(9, images=400), job(9, images=100)
    others = [job(image_size=128), job(precision="fp32"), job(name="dskd"), job(compile="graph")]
    room = room_of([alike[2], more, fewer, *others], seen, {GPU: 1e4})
    # Of an image: its pixels, and three maps of 64, 128 and 256 channels in bf16.
    per_image = (3 * 256**2 + 2 * (64 * 64**2 + 128 * 32**2 + 256 * 16**2)) / 2**20
    assert room.needs == {
        alike[2].spec.id: need(3000.0),
        more.spec.id: need(3000.0 + 200 * per_image),
        fewer.spec.id: need(3000.0 - 100 * per_image),
    }


def test_features_that_found_no_place_take_none_of_more_images(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.publish(record(job(images=200), 3000.0, kept="recomputed"))
    more = job(images=10_000)
    assert room_of([more], learn(results), {}).needs == {more.spec.id: need(3000.0)}


def test_without_records_what_autograd_keeps_is_counted() -> None:
    """The table is what its hooks count, at another size; so is what an estimate has of a larger batch."""
    from harness.doctor import compute
    from harness.run.batches import to_images
    from harness.run.device import open_device

    device = open_device("cpu", "bf16")
    teacher = compute.teacher_of("resnet18", device)

    def kept_mib(name: str, images: int) -> float:
        learner, features = compute.learner_of(compute.spec_of(name, "resnet18", device, 64), teacher, device, images)
        learner.students.train()
        inputs = [to_images(features.pixels), *features[np.arange(images)]]
        known = {tensor.untyped_storage().data_ptr() for tensor in [*inputs, *learner.distiller.state_dict().values()]}
        found: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), device.autocast():
            learner.forward(learner.trained, inputs[0], inputs[1:])
        return sum(one.untyped_storage().nbytes() for place, one in found.items() if place not in known) / 2**20

    for name, at in (("stfpm", 0), ("reverse_distillation", 1)):
        of_an_image = (kept_mib(name, 6) - kept_mib(name, 2)) / 4
        assert KEPT["resnet18"][at] == pytest.approx(16 * of_an_image, rel=0.02)

    def estimate(**changes: object) -> float:
        one = job(**changes)
        room = with_estimates(Room({"known": 1.0}, {GPU: 1e6}), [one])
        assert (room.needs["known"], room.estimated) == (1.0, {one.spec.id})
        return room.needs[one.spec.id]

    more_pixels = PIECES * (16 * KEPT["resnet18"][0] * 3 + 100 * 3 * (3 * 256**2 + 2 * 458_752) / 2**20)
    assert estimate(image_size=512) - estimate() == pytest.approx(more_pixels, rel=0.01)
    assert with_estimates(Room(), [job(precision="fp32")]).needs.keys() == {job(precision="fp32").spec.id}
    known = Room({job().spec.id: 7.0}, {GPU: 1e6})
    assert with_estimates(known, [job()]) == known
    assert with_estimates(Room({"a": 1.0}, {GPU: 4096.0}), [job(name="dskd")]).most()[1].endswith("GiB by an estimate")
    assert not with_estimates(
        Room(), [dataclasses.replace(job(), spec=dataclasses.replace(job().spec, backbone="another"))]
    ).needs


def test_a_run_waits_for_memory_unless_it_is_alone_or_unknown() -> None:
    room = Room({"small": 4.0, "large": 20.0}, {GPU: 25.0})
    assert room.has(GPU, "small", ["large"])
    assert not room.has(GPU, "large", ["large"])
    assert not room.has(GPU, "small", ["large", "unknown", "small"])
    assert room.has(GPU, "large", [])
    assert room.has(GPU, "unknown", ["large", "large"])
    assert room.has("GPU-1aa", "large", ["large"])
    assert Room().has(GPU, "large", ["large"])
    assert room.most() == (1, "0.0 GiB free, a run takes about 0.0 GiB by its records")
    assert Room({"a": 4096.0}, {GPU: 10_240.0, "GPU-1aa": 81_920.0}).most() == (
        2,
        "10.0 GiB free, a run takes about 4.0 GiB by its records",
    )
    assert (Room({"a": 1.0}).most(), Room({}, {GPU: 1.0}).most()) == (None, None)
    assert Room({"a": 9.0}, {GPU: 1.0}).most()[0] == 1


def test_memory_cores_and_pace_bound_the_runs_of_a_gpu() -> None:
    small, large = [job(image_size=128)], [job(image_size=2048)]
    cores = "cores: 16 for 2 GPUs, a run takes one to launch its steps"
    of_cores, of_pace = bounds(small, prior("cuda"), Room(), 16, 2)
    assert of_cores == Bound(8, cores)
    assert of_pace.most > 4  # 16 times less than the host at 256 pixels
    assert bounds(small, prior("cuda"), Room(), 2, 8)[0].most == 1
    assert bounds(large, prior("cuda"), Room(), 16, 2)[1] == Bound(
        1, "pace: the device is about 100% of a step's time at work"
    )
    for ratio, most in ((0.5, 1), (1.0, 1), (1.5, 2), (3.9, 4)):  # of the host's time to the device's
        start = PRIOR["cuda"]
        amount = bounds.__globals__["training"](small[0].spec)
        host_s = ratio * amount.gmac / start.rate / amount.operations * (1 - 1e-9)
        assert bounds(small, Paces(Pace(host_s, start.rate, True)), Room(), 16, 1)[1].most == most
    room = Room({small[0].spec.id: 4096.0}, {GPU: 10_240.0})
    of_memory = Bound(2, "memory: 10.0 GiB free, a run takes about 4.0 GiB by its records")
    assert of_memory in bounds(small, prior("cuda"), room, 16, 2)
    assert bounds(large, prior("cuda"), room, 1, 8, recorded=True) == [of_memory]
    assert bounds(small, prior("cuda"), Room(), 16, 1, recorded=True) == [
        Bound(1, "memory: what runs with recorded steps take is not known yet")
    ]


def test_the_driver_is_asked_for_what_is_free(nvml: Nvml) -> None:  # noqa: F811
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: nvml.by_index(int(uuid[4]))
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: type("Memory", (), {"free": 3 * 2**20})
    nvml.lost = (1,)
    assert free_memory_mib([GPU, "GPU-1aa"]) == {GPU: 3.0}
    nvml.broken = "version mismatch"
    assert free_memory_mib([GPU]) == {}


class Watched:
    """What a supervisor told of runs, by seed: how many were on at the same time at most, and which were done."""

    def __init__(self, look: Callable[[int], None] = lambda seed: None) -> None:
        self.on: set[int] = set()
        self.most, self.done, self.look = 0, set[int](), look

    def __call__(self, job: Job, event: events.Event) -> None:
        match event:
            case events.Phase():
                self.on.add(job.spec.seed)
                self.most = max(self.most, len(self.on))
                self.look(job.spec.seed)
            case events.Recorded():
                self.on.remove(job.spec.seed)
                self.done.add(job.spec.seed)


Do = Callable[..., None]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Do runs of these seconds, with what each takes of a GPU that they all share."""

    def call(watched: Watched, seconds: list[float], needs: list[float | None], free: float, places: int) -> None:
        monkeypatch.setattr(group, "WORKER", [str(ROOT / "tests" / "scripts" / "fake_worker.py")])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        how = {str(seed): f"takes:{one}" for seed, one in enumerate(seconds)}
        monkeypatch.setenv("FAKE", json.dumps(how | {"log": str(tmp_path / "log")}))
        jobs = [dataclasses.replace(job(seed), results=str(tmp_path / "runs")) for seed in range(len(seconds))]
        (tmp_path / "runs").mkdir()
        known = {one.spec.id: of_it for one, of_it in zip(jobs, needs, strict=True) if of_it is not None}
        shared = [(Slot("cuda:0", "cuda", GPU, (), 1),)] * places
        phase = Phase(list(zip(jobs, seconds, strict=True)), shared, Room(known, {GPU: free}))
        supervise([phase], [watched], Results(tmp_path / "runs"), Limits(0))

    return call


@pytest.mark.parametrize(("known", "most"), [(True, 2), (False, 4)])
def test_what_has_no_memory_waits(known: bool, most: int, do: Do) -> None:
    watched = Watched()
    do(watched, [1.0] * 4, [10.0 if known else None] * 4, 25.0, places=4)
    assert watched.done == {0, 1, 2, 3}
    assert watched.most == most


def test_one_that_has_no_room_at_all_is_done_alone(do: Do) -> None:
    watched = Watched()
    do(watched, [0.3, 0.3], [99.0, 99.0], 25.0, places=2)
    assert (watched.done, watched.most) == ({0, 1}, 1)


def test_an_idle_worker_gives_its_memory_to_those_that_wait_for_it(do: Do, tmp_path: Path) -> None:
    """The small run ends while a large one is on, beside which the other large one has no room."""
    alive: dict[int, bool] = {}

    def look(seed: int) -> None:
        lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        workers = {int(line[2]): line[0] for line in lines}
        if seed == 2:
            alive[1] = Path("/proc", workers[1]).exists() and workers[1] != workers[2]

    watched = Watched(look)
    do(watched, [1.5, 0.1, 1.0], [20.0, 5.0, 20.0], 27.0, places=2)
    assert (watched.done, watched.most) == ({0, 1, 2}, 2)
    assert alive == {1: False}


def test_ranks_and_measurements_are_no_clients_of_an_own_daemon() -> None:
    slots = [Slot(f"cuda:{i}", "cuda", f"GPU-{i}", (0,), 1, pipes=f"/pipes/{i}") for i in (0, 0, 1, 1)]
    bench = BenchJob(BenchSpec(get_method("stfpm"), "resnet18", 256, "auto", "NVIDIA X", 2), ".")
    room = Room({"a": 1.0}, {GPU: 2.0})
    jobs = [(job(), 1.0), (job(processes=2), 1.0), (bench, 1.0)]
    together, single, measured = phases(jobs, slots, whole_machine(slots), room=room)
    assert [slot.pipes for slot in together.places[0]] == ["", ""]
    assert [place[0].pipes for place in single.places] == ["/pipes/0", "/pipes/0", "/pipes/1", "/pipes/1"]
    assert measured.places[0][0].pipes == ""
    assert (together.room, single.room, measured.room) == (Room(), room, Room())
    assert {slot.pipes for slot in apart(slots)} == {""}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, mps_place: Path) -> Path:
    """Two GPUs, of which the doctor found that MPS pays; the file in which daemons say what they are asked for, and
    workers by which pipes they run.
    """
    monkeypatch.setattr("harness.launch.devices.gpus", lambda: [Gpu(GPU, "NVIDIA X"), Gpu("GPU-1aa", "NVIDIA X")])
    monkeypatch.setattr(environment, "gpus", lambda: [Gpu(GPU, "NVIDIA X")])
    monkeypatch.setattr("harness.cli.sharing.proven", lambda *_: FOUND)
    monkeypatch.setattr("harness.cli.sharing.free_memory_mib", lambda gpus: dict.fromkeys(gpus, 20_480.0))
    monkeypatch.setattr("harness.cli.sharing.core_count", lambda: 16)
    monkeypatch.setattr(group, "WORKER", [str(ROOT / "tests" / "scripts" / "fake_worker.py")])
    monkeypatch.setenv("FAKE", json.dumps({"pipes": str(mps_place / "log")}))
    return mps_place / "log"


@pytest.mark.parametrize(
    ("options", "variables", "served", "says"),
    [
        (
            ["--runs-per-device", "2"],
            {},
            True,
            "MPS: a daemon of our own for each GPU (harness doctor: images/s in sum",
        ),
        (["--runs-per-device", "2", "--no-mps"], {}, False, "MPS: none (--no-mps)"),
        (["--runs-per-device", "1"], {}, False, ""),
        (
            ["--runs-per-device", "2"],
            {"FAKE_MPS": "refuses"},
            False,
            "MPS: none on GPU-1aa (nvidia-cuda-mps-control do",
        ),
    ],
)
def test_a_grid_on_shared_gpus_has_daemons_of_its_own_while_it_trains(
    options: list[str],
    variables: dict[str, str],
    served: bool,
    says: str,
    machine: Path,
    mps_place: Path,
    tree: Path,
    write_grid: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    grid = write_grid(tree, axes={"seed": list(range(6))}, bench={"batch_sizes": [1], "seconds": 0.05})
    done = harness("run", "--grid", grid, "--out", grid.parent / "runs", *options)
    assert says in done.out, done.out + done.err
    assert done.out.count("MPS: ") == (0 if not says else 3 if variables else 1)
    lines = [line.split() for line in machine.read_text().splitlines()]
    asked = [line[:2] for line in lines if line[0] in ("start", "quit")]
    starts = [["start", GPU], ["start", "GPU-1aa"]] if served or variables else []
    assert sorted(asked) == ([["quit", "-t"]] * 2 if served else []) + starts
    folder = mps_place / f"harness-mps-{os.getuid()}"
    own = {str(folder / gpu / "pipes") for gpu in (GPU, "GPU-1aa")} if served else {"None"}
    jobs = [line[1:] for line in lines if line[1] in ("train", "bench")]
    assert {pipes for kind, pipes in jobs if kind == "train"} <= own
    assert len(jobs) == 7
    assert lines[-1][1:] == ["bench", "None"]  # after the daemons have ended


def test_runs_that_want_more_memory_than_there_is_are_told_so_before(
    machine: Path, tree: Path, write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tree, axes={"seed": [0, 1, 2, 3]})
    monkeypatch.setattr(
        "harness.launch.memory.room_of", lambda jobs, seen, free: Room({one.spec.id: 8192.0 for one in jobs}, free)
    )
    waits = (
        "memory for about 2 of 4 at a time: 20.0 GiB free, a run takes about 8.0 GiB by its records; the others wait"
    )
    for command in ("plan", "run"):
        done = harness(command, grid, "--out", grid.parent / "runs", "--runs-per-device", "4")
        assert waits in done.out.replace("\n", " "), done.out + done.err
        bound = "found 4 best; memory: 20.0 GiB free, a run takes about 8.0 GiB by its records"
        done = harness(command, grid, "--out", grid.parent / "runs", "--runs-per-device", "auto")
        assert f"runs per device: 2 (harness doctor on 2026-11-26 {bound})" in done.out, done.out + done.err


def test_no_mps_on_a_cpu_does_nothing(tree: Path, write_grid: Callable[..., Path]) -> None:
    done = harness("plan", write_grid(tree), "--devices", "cpu", "--runs-per-device", "2", "--no-mps")
    assert done.code == 0
    assert "MPS" not in done.out
