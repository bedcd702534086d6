"""One run on several processes: real ones, under torchrun, over gloo."""

import csv
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dskd import METHODS, Distiller, Teacher
from dskd.config import ConfigError, from_mapping, to_mapping
from harness.data import images
from harness.data.catalog import get_source
from harness.data.held_out import divide
from harness.grid import check_processes, expand, resolve
from harness.gridfile import parse
from harness.job import Job, TrainJob, encode
from harness.launch.schedule import remaining
from harness.records import Failure, Results
from harness.run.batch_norm import renewal_batches
from harness.run.batches import deal, part_of, received, to_images, whole_batches
from harness.run.device import open_device
from harness.run.evaluate import inspect
from harness.run_folder import read_calibration, read_scores
from harness.spec import Save, TrainSpec
from tests.conftest import ROOT, SHARED
from tests.run.test_batch_norm import by_hand
from tests.scripts.processes import RECIPES, inspected, spec

WriteGrid = Callable[..., Path]
State = dict[str, torch.Tensor]


def torchrun(*arguments: object, expect: int = 0) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.scripts.processes", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def write_pixels(folder: Path) -> np.ndarray:
    """11 images, real ones where there are some; in `pixels.npy` too."""
    paths = sorted((SHARED / "data" / "mtd" / "MT_Free" / "Imgs").glob("*.jpg"))[:11]
    found = [np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in paths]
    made = np.stack(found) if found else np.random.default_rng(0).integers(256, size=(11, 64, 64, 3), dtype=np.uint8)
    np.save(folder / "pixels.npy", made)
    return made


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Where two processes left what they trained and what they made of the images, which come with it."""
    folder = tmp_path_factory.mktemp("together")
    pixels = write_pixels(folder)
    torchrun("train,inspect", folder, "ddp")
    return folder, pixels


def reference(recipe: str, pixels: np.ndarray) -> tuple[list[float], State]:
    """Losses and (averaged) students of one process that adds up gradients of two micro-batches; plain torch.

    The first micro-batch's BatchNorm statistics are those that are kept, or with `renew_batch_norm` the mean over all.
    """
    run, count = spec(recipe, processes=1), RECIPES[recipe][0]
    train = run.method.train
    torch.manual_seed(run.seed)
    model = Distiller(run.method, run.backbone, Teacher(run.backbone))
    students = model.students.train()
    optimizer = torch.optim.SGD(students.parameters(), train.lr, train.momentum, weight_decay=train.weight_decay)
    steps = train.epochs * -(-count // train.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if train.schedule == "cosine" else None
    order = torch.Generator().manual_seed(run.seed)
    losses: list[float] = []
    average: State = {}
    for _ in range(train.epochs):
        total = 0.0
        shuffled = torch.randperm(count, generator=order).numpy()
        for start in range(0, count, train.batch_size):
            batch = shuffled[start : start + train.batch_size]
            half = (len(batch) + 1) // 2
            for part in (batch[:half], batch[half:]):
                if len(part):
                    statistics = [buffer.clone() for buffer in students.buffers()]
                    loss = model.loss(to_images(torch.from_numpy(pixels[part])))
                    (loss * len(part) / len(batch)).backward()
                    total += loss.item() * len(part)
            if len(batch) > half:
                for buffer, before in zip(students.buffers(), statistics, strict=True):
                    buffer.copy_(before)
            if train.clip:
                torch.nn.utils.clip_grad_norm_(students.parameters(), train.clip)
            optimizer.step()
            optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
            for key, value in students.state_dict().items():
                average[key] = train.ema * average.get(key, value) + (1 - train.ema) * value
        losses.append(total / count)
    if train.renew_batch_norm:
        students.load_state_dict(average)
        batches = renewal_batches(np.arange(count), train.batch_size)
        parts = [pixels[part] for batch in batches for part in np.array_split(batch, 2)]
        average |= by_hand(students, [to_images(torch.from_numpy(part)) for part in parts])
    return losses, average


def error_of(found: State, expected: State, *names: str) -> float:
    """Of what training changed in the tensors of these names, as a share."""
    torch.manual_seed(0)
    run = spec("clipped")
    start = Distiller(run.method, run.backbone, Teacher(run.backbone)).students.state_dict()
    pairs = [(found[key] - expected[key], start[key] - expected[key]) for key in found if key.endswith(names)]
    wrong, moved = (sum(tensor.square().sum().item() for tensor in side) for side in zip(*pairs, strict=True))
    return (wrong / moved) ** 0.5


def check_trained(folder: Path, strategy: str, pixels: np.ndarray) -> None:
    """Both ranks ended alike, and as the reference did."""
    first, second = (torch.load(folder / f"{strategy}-{rank}.pt") for rank in (0, 1))
    for recipe, found in first.items():
        assert found["losses"] == second[recipe]["losses"], recipe
        assert found["kept"] == second[recipe]["kept"]
        assert all(torch.equal(value, second[recipe]["state"][key]) for key, value in found["state"].items())
    for name in [name for name in first if name.endswith(", stopped")]:
        stopped, undisturbed = first.pop(name), first[name.removesuffix(", stopped")]
        assert stopped["resumed"] == 2
        assert (stopped["losses"], stopped["maps"]) == (undisturbed["losses"], undisturbed["maps"])
        assert all(torch.equal(value, undisturbed["state"][key]) for key, value in stopped["state"].items())
    for recipe in first.keys() - {"selected"}:
        losses, state = reference(recipe, pixels)
        # BatchNorm over two images magnifies rounding from step to step (and ReLU what is near 0).
        assert first[recipe]["losses"] == pytest.approx(losses, rel=1e-4 if len(losses) == 1 else 1e-3)
        if len(losses) == 1:
            assert error_of(first[recipe]["state"], state, "weight", "bias") < 0.01
            assert error_of(first[recipe]["state"], state, "running_mean", "running_var") < 0.001
    selected = first["selected"]
    assert selected["kept"] == 1 + int(np.argmin(selected["maps"]))
    run = spec("selected")
    model = Distiller(run.method, run.backbone, Teacher(run.backbone)).eval()
    model.students.load_state_dict(selected["state"])
    with torch.inference_mode():
        held_out = model.anomaly_map(to_images(torch.from_numpy(pixels[8:]))).mean().item()
    assert min(selected["maps"]) == pytest.approx(held_out, rel=1e-4)


def test_two_processes_train_as_one_that_adds_up_two_micro_batches(
    together: tuple[Path, np.ndarray], one_thread: Callable[[], None]
) -> None:
    one_thread()
    check_trained(together[0], "ddp", together[1])


@pytest.mark.slow
def test_every_method_trains_on_any_of_its_scales(tmp_path: Path) -> None:
    write_pixels(tmp_path)
    said = torchrun("scales", tmp_path)
    assert said.count(" True") == 2 * 5 * len(METHODS), said  # on both processes


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_trains_as_ddp_does(tmp_path: Path) -> None:
    pixels = write_pixels(tmp_path)
    strategies = ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
    torchrun("train", tmp_path, *strategies)
    for strategy in strategies:
        check_trained(tmp_path, strategy, pixels)


def test_maps_and_scores_do_not_depend_on_the_processes(
    together: tuple[Path, np.ndarray], one_thread: Callable[[], None]
) -> None:
    folder, pixels = together
    for precision in ("fp32", "bf16"):
        device = open_device("cpu", precision)
        one_thread()
        for method in ("dskd", "student_ensemble"):
            for i, alone in enumerate(inspected(method, pixels, device)):
                together = np.load(folder / f"{method}-{precision}-{i}.npz")
                assert np.array_equal(alone.maps, together["maps"])
                assert np.array_equal(alone.scores, together["scores"])


def jobs(grid: Path) -> tuple[list[Job], Results]:
    parsed = parse(yaml.safe_load(grid.read_text()))
    results = Results(grid.parent / "runs")
    todo = remaining(
        expand(parsed, resolve(parsed)),
        (),
        results=str(results.folder),
        save=Save(),
        device="cpu",
        force=False,
        grid="tiny",
        checkpoint_every_s=600.0,
    )
    return todo.jobs, results


def written(job: Job, folder: Path) -> Path:
    path = folder / f"{job.spec.id}.json"
    path.write_bytes(encode(job))
    return path


def check_scores(job: TrainJob, results: Results, one_thread: Callable[[], None]) -> None:
    """The students that a job on several processes saved give one process the scores that it wrote, to the last bit."""
    spec, device = job.spec, open_device("cpu", "fp32")
    one_thread()
    model = Distiller(spec.method, spec.backbone, Teacher(spec.backbone)).to(memory_format=torch.channels_last)
    model.students.load_state_dict(load_file(results.run_folder(spec.id).path / "students.safetensors"))
    category = images.load(get_source(job.source), spec.data, spec.image_size)
    test, held = category.test.images, divide(category.train.samples, spec).calibration
    options = {"calibration": category.train.images[held]}
    _, (alone,) = inspect(model, test, job.evaluations, spec.eval_batch_size, device, lambda *_: None, test, **options)
    folder = results.run_folder(job.evaluations[0].id)
    assert [one.score for one in read_scores(folder, [])] == alone.scores.tolist()
    held_out = [] if alone.calibration is None else alone.calibration.scores.tolist()
    assert [one.score for one in read_calibration(folder, [])] == held_out


def test_a_job_on_two_processes(tree: Path, write_grid: WriteGrid, one_thread: Callable[[], None]) -> None:
    settings = {"processes": 2, "train.epochs": 2, "train.batch_size": 4, "eval.batch_size": 2, "evaluate.at": [2]}
    bad = {"name": "dskd", "train.optimizer": "sgd", "train.lr": 1e30, "train.epochs": 5}
    held = {"calibrate": 0.3, "false_alarm_rate": 0.34}
    grid = write_grid(tree, axes={"method": ["stfpm", bad]}, defaults=settings | held | {"image_size": 64})
    (good, diverging), results = jobs(grid)
    paths = [written(job, grid.parent) for job in (good, diverging)]
    output = torchrun("execute", grid.parent, *paths, expect=1)
    assert output.count("record {") == 2
    training, evaluation = results.record(good.spec.id), results.record(good.evaluations[0].id)
    assert (training.result["processes"], training.result["distributed_type"]) == (2, "MULTI_CPU")
    check_scores(good, results, one_thread)
    (along,) = csv.DictReader((results.run_folder(good.spec.id).path / "metrics.csv").open(newline=""))
    assert float(along["image_auroc"]) == evaluation.result["image_auroc"]
    # What all ranks fail at is told once, by rank 0.
    failure = results.last_failure(diverging.spec.id)
    assert (failure.reason, failure.attempt) == ("diverged", 1)
    assert not failure.message.startswith("process")
    assert "'reason': 'diverged'" in output


def test_what_one_of_the_processes_fails_at_does_not_leave_the_other_waiting(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, defaults={"processes": 2, "train.batch_size": 4, "image_size": 64})
    (job,), results = jobs(grid)
    output = torchrun("fail", grid.parent, written(job, grid.parent), expect=1)
    (failure,) = results
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.attempt) == ("out_of_memory", 1)
    assert failure.message == "process 1: MemoryError: nothing left"
    assert output.count("failed {") == 1
    assert "'message': 'process 1: MemoryError: nothing left'" in output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 0}, "processes: 0 is not possible; write 1 or more"),
        ({"processes": 3}, "train.batch_size: 16 .* does not divide by processes: 3; write 18"),
        ({"strategy": "zero3"}, "strategy: 'zero3' is not possible; did you mean 'deepspeed_zero3'"),
        ({"strategy": "deepspeed_zero1"}, "write processes: 2 or strategy: ddp"),
        ({"train.batch_norm": "sync"}, "train.batch_norm: sync has nobody to share with"),
        ({"processes": 2, "strategy": "deepspeed_zero2", "train.optimizer": "split"}, "is two optimizers"),
        ({"processes": 2, "strategy": "deepspeed_zero3", "train.ema": 0.9}, "write strategy: deepspeed_zero2"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], message: str, write_grid: WriteGrid) -> None:
    grid = write_grid(axes={"method": ["dskd"]}, defaults=settings)
    with pytest.raises(ConfigError, match=message) as error:
        jobs(grid)
    assert "\n" not in str(error.value)


def test_what_this_machine_cannot_do_is_refused(write_grid: WriteGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"processes": 4, "train.batch_norm": "sync", "strategy": "deepspeed_zero2"}
    parsed = parse(yaml.safe_load(write_grid(axes={"method": ["dskd"]}, defaults=settings).read_text()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else object())
    facts = resolve(parsed)
    with pytest.raises(
        ConfigError, match=r"not installed \(transformers\); run pip install 'dskd-harness\[deepspeed\]'"
    ):
        expand(parsed, facts)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    plan = expand(parsed, resolve(parsed))
    with pytest.raises(ConfigError, match=r"processes: 4 is more than the devices to run on, 2 \(cuda\)"):
        check_processes(plan, "cuda", 2)
    with pytest.raises(ConfigError, match=r"write train\.batch_norm: local"):
        check_processes(plan, "cpu", 4)
    with pytest.raises(
        ConfigError, match=r"processes: 4 leaves devices of --nodes 2 idle; write processes: 8, or give"
    ):
        check_processes(plan, "cuda", 4, nodes=2)
    check_processes(plan, "cuda", 2, nodes=2)
    check_processes(plan, "cuda", 4)


def test_settings_of_processes_are_part_of_the_run(write_grid: WriteGrid) -> None:
    axes = {"processes": [1, 2], "train.batch_norm": ["local"]}
    found = [job.spec for job in jobs(write_grid(axes=axes))[0]]
    plain = jobs(write_grid())[0][0].spec
    assert found[0].id == plain.id != found[1].id
    assert [run.process_batch_size for run in found] == [32, 16]
    assert from_mapping(TrainSpec, to_mapping(found[1])) == found[1]


MANY_JOBS = """
import os, sys
from types import SimpleNamespace
import torch
from harness.run.device import Device
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
on_gpus = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
for job in range(20):  # each opens its device anew
    assert Device(on_gpus, "fp32").most(job) == job
    held = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    first = held if job == 0 else first
print(first == held, first, held)
"""


def test_a_worker_on_gpus_has_one_group_of_hosts_whatever_its_jobs(tmp_path: Path) -> None:
    """gloo's groups have threads and sockets of their own, which do not end with the job."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_JOBS, tmp_path / "store"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("True"), done.stdout + done.stderr


def test_parts_of_a_batch() -> None:
    for count in range(1, 9):
        parts = [part_of(np.arange(count), rank, 3) for rank in range(3)]
        assert sum(weight for _, weight in parts) == pytest.approx(3)
        assert [i for part, weight in parts if weight for i in part] == list(range(count))
        assert all(len(part) for part, _ in parts)


def test_batches_are_dealt_to_the_ranks_and_arrive_once() -> None:
    for count in range(1, 14):
        batches = whole_batches(count, 2)
        hands = [deal(len(batches), rank, 3) for rank in range(3)]
        turns = [received(batches, sent) for sent in zip(*hands, strict=True)]
        assert [i for turn in turns for rows in turn.values() for i in rows] == list(range(count))
    assert hands == [[0, 3, 6], [1, 4, 6], [2, 5, 6]]
    assert list(turns[-1]) == [0]  # the others repeat the last batch


def test_the_launchers_number_of_processes_is_checked() -> None:
    with pytest.raises(RuntimeError, match="asks for processes: 2, its worker was started as 1"):
        open_device("cpu", "fp32", 2)
