"""Run by tests/run/test_processes.py under torchrun: `python -m tests.scripts.processes SCENARIO[,...] FOLDER [...]`.

What a scenario needs lies in the folder (`pixels.npy`, jobs), and each rank leaves there what it came to.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed

from dskd import METHODS, Distiller, Teacher, get_method, replace
from dskd.backbones import TRUNKS
from harness import events
from harness.job import decode
from harness.run import attempt, execute
from harness.run.checkpoint import Checkpointing, Interrupted
from harness.run.device import Device, open_device
from harness.run.evaluate import Inspected, inspect
from harness.run.features import TeacherFeatures
from harness.run.learner import Learner
from harness.run.train import train
from harness.run_folder import RunFolder
from harness.spec import Data, EvaluateSpec, Strategy, TrainSpec, Weights
from tests.run.small import SMALL, SmallResNet
from tests.run.test_checkpoint import StopAfter

RANK = int(os.environ.get("RANK", "0"))
SGD = {"train.epochs": 1, "train.batch_size": 4, "train.lr": 0.01, "train.select": "last"}
# Of 11 images the last batch has 3 (parts of 2 and 1), of 9 it has 1 (and the second process none).
RECIPES = {
    "longer": (11, SGD | {"train.epochs": 3}),
    "clipped": (9, SGD | {"train.clip": 0.5, "train.schedule": "cosine"}),
    "selected": (8, SGD | {"train.select": "val_normal", "train.epochs": 2}),  # by the images after the first 8
    "averaged": (11, SGD | {"train.ema": 0.5}),
    "renewed": (11, SGD | {"train.renew_batch_norm": True}),
    "one scale": (9, SGD | {"layers": (1,)}),  # what comes after it in the students has no gradient
}


def spec(recipe: str, processes: int = 2, strategy: Strategy = "ddp") -> TrainSpec:
    method = replace(get_method("stfpm"), RECIPES[recipe][1])
    data = Data("x", "y", "z")
    backbone = "resnet18" if recipe == "longer" else SMALL
    return TrainSpec(method, backbone, Weights(), data, image_size=64, processes=processes, strategy=strategy)


def trained(
    run: TrainSpec, images: int, pixels: np.ndarray, device: Device, checkpointing: Checkpointing | None = None
) -> dict[str, object]:
    torch.manual_seed(run.seed)
    model = Distiller(run.method, run.backbone, Teacher(run.backbone))
    model.to(memory_format=torch.channels_last)
    features = TeacherFeatures(model.teacher, torch.from_numpy(pixels), run.process_batch_size, device)
    positions = np.arange(len(pixels))
    chosen, held_out = positions[:images], positions[images:]
    learner = Learner(model, run, device, len(chosen))
    curve, kept = train(learner, features, chosen, held_out, lambda *_: None, checkpointing=checkpointing)
    maps = [epoch.held_out_map for epoch in curve]
    losses = [epoch.loss for epoch in curve]
    return {"losses": losses, "maps": maps, "kept": kept, "state": model.students.state_dict()}


def stopped_and_resumed(recipe: str, strategy: Strategy, pixels: np.ndarray, folder: Path) -> dict[str, object]:
    """As `trained`, in three attempts: the second process is told to stop after its second step and its next one."""
    run = spec(recipe, strategy=strategy)
    for steps in (2, 1, 1000):
        device = open_device("cpu", "fp32", 2, strategy)
        stop = StopAfter(steps if RANK else 1000)
        checkpointing = Checkpointing(RunFolder(folder / f"{recipe}-{strategy}"), run.id, device, 1000.0, stop)
        with suppress(Interrupted):
            found = trained(run, RECIPES[recipe][0], pixels, device, checkpointing)
            return found | {"resumed": checkpointing.resumed}
    raise AssertionError


def inspected(method: str, pixels: np.ndarray, device: Device) -> list[Inspected]:
    """What untrained students make of the images, in three ways (an ensemble: in its own, which is calibrated)."""
    run = TrainSpec(get_method(method), "resnet18", Weights(), Data("x", "y", "z"), image_size=64)
    variants = [EvaluateSpec(run, run.method.map)]
    if method == "dskd":
        variants.append(EvaluateSpec(run, replace(run.method.map, {"sigma": 0}), "mean"))
        variants.append(EvaluateSpec(run, replace(run.method.map, {"scale_fuse": "mul"}), "topk_mean"))
    torch.manual_seed(0)
    model = Distiller(run.method, "resnet18", Teacher("resnet18")).to(memory_format=torch.channels_last)
    return inspect(model, pixels, variants, 4, device, lambda *_: None, pixels[:6])[1]


def main() -> None:
    TRUNKS[SMALL] = SmallResNet
    for scenario in sys.argv[1].split(","):
        do(scenario, Path(sys.argv[2]), sys.argv[3:])
    # Together: gloo may abort a rank whose peer has gone.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def do(scenario: str, folder: Path, arguments: list[str]) -> None:
    if scenario == "train":
        pixels = np.load(folder / "pixels.npy")
        for strategy in arguments:
            device = open_device("cpu", "fp32", 2, strategy)
            found = {
                recipe: trained(spec(recipe, strategy=strategy), images, pixels, device)
                for recipe, (images, _) in RECIPES.items()
                if (recipe, strategy) != ("averaged", "deepspeed_zero3")
            }
            for recipe in ("selected", "averaged"):
                if recipe in found:
                    found[f"{recipe}, stopped"] = stopped_and_resumed(recipe, strategy, pixels, folder)
            torch.save(found, folder / f"{strategy}-{RANK}.pt")
    elif scenario == "scales":
        pixels = np.load(folder / "pixels.npy")
        device = open_device("cpu", "fp32", 2)
        for name in METHODS:
            for layers in ((1,), (3,), (1, 2), (2, 3), (1, 2, 3)):
                method = replace(get_method(name), {"layers": layers, "train.epochs": 3, "train.batch_size": 4})
                found = trained(
                    TrainSpec(method, "resnet18", Weights(), Data("x", "y", "z"), image_size=64, processes=2),
                    4,
                    pixels,
                    device,
                )
                # In one write: the other process prints to the same pipe.
                print(f"{name} {layers} {found['losses'][-1] < found['losses'][0]}\n", end="", flush=True)
    elif scenario == "inspect":
        pixels = np.load(folder / "pixels.npy")
        for precision in ("fp32", "bf16"):
            device = open_device("cpu", precision, 2)
            for method in ("dskd", "student_ensemble"):
                found = inspected(method, pixels, device)
                assert len(found) == (0 if RANK else 3 if method == "dskd" else 1)
                for i, one in enumerate(found):
                    np.savez(folder / f"{method}-{precision}-{i}.npz", maps=one.maps, scores=one.scores)
    elif scenario == "execute":
        attempt.GRACE_S = 1.0
        for path in arguments:
            execute.execute(decode(Path(path).read_bytes()), emit)
    elif scenario == "fail":
        attempt.GRACE_S = 1.0
        if RANK == 1:  # while rank 0 waits for its gradients

            def fail(*_: object) -> None:
                raise MemoryError("nothing left")

            execute.train = fail
        execute.execute(decode(Path(arguments[0]).read_bytes()), emit)


def emit(event: events.FromWorker) -> None:
    if RANK == 0 and isinstance(event, events.Recorded | events.Failed):
        print("record" if isinstance(event, events.Recorded) else "failed", vars(event), flush=True)


if __name__ == "__main__":
    main()
