"""Training on several processes against one, each with one thread: what a step costs, and what the gradients' way.

    python benchmarks/speed/processes.py [--method stfpm] [--processes 2] [--size 128]

One process trains whole batches; k processes train them together (DDP over gloo); and, to tell what the machine costs
from what the training together costs, k processes train the parts of a batch at the same time, each for itself. They
alternate. The ratio is the step together to one process's step divided by k plus the all-reduce of the gradients, which
is measured by itself; also in CPU time of a process, which says more where others use the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from harness.environment import device_name
from harness.launch.group import MALLOC

STEPS = 8  # an epoch; the first epoch warms up and is not counted


def measure(options: argparse.Namespace) -> dict[str, float]:
    """In a started process: median seconds (and CPU seconds) of a training step, and of its gradients' all-reduce."""
    import numpy as np
    import torch
    import torch.distributed

    from dskd import Distiller, Teacher, get_method, replace
    from harness.run.device import open_device
    from harness.run.features import TeacherFeatures
    from harness.run.learner import Learner
    from harness.run.train import Epoch, train
    from harness.spec import Data, TrainSpec, Weights

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    recipe = {"train.epochs": 1 + options.epochs, "train.select": "last"}
    if options.part:
        recipe["train.batch_size"] = get_method(options.method).train.batch_size // options.processes
    method = replace(get_method(options.method), recipe)
    spec = TrainSpec(method, "resnet18", Weights(), Data("", "", ""), image_size=options.size, processes=processes)
    device = open_device("cpu", options.precision, processes)
    torch.manual_seed(0)
    model = Distiller(method, "resnet18", Teacher("resnet18")).to(memory_format=torch.channels_last)
    shape = (STEPS * method.train.batch_size, options.size, options.size, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    features = TeacherFeatures(model.teacher, pixels, spec.process_batch_size, device)
    device.wait()
    ends: list[tuple[float, float]] = []

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def report(_step: int, _steps: int, epoch: Epoch | None) -> None:
        if epoch is None:
            ends.append(now())

    learner = Learner(model, spec, device, len(pixels))
    train(learner, features, np.arange(len(pixels)), np.zeros(0, np.int64), report)
    steps = np.diff(ends, axis=0)[STEPS:]
    exchanges = [(0.0, 0.0)]
    if processes > 1:
        gradients = torch.zeros(sum(p.numel() for p in model.students.parameters()))
        for _ in range(10):
            device.wait()
            started = now()
            torch.distributed.all_reduce(gradients)
            exchanges.append(np.subtract(now(), started))
    device.wait()
    if processes > 1:
        torch.distributed.destroy_process_group()  # together: gloo may abort a rank whose peer has gone
    (step, step_cpu), (all_reduce, all_reduce_cpu) = np.median(steps, axis=0), np.median(exchanges, axis=0)
    return {"step": step, "step_cpu": step_cpu, "all_reduce": all_reduce, "all_reduce_cpu": all_reduce_cpu}


def start(options: argparse.Namespace, *launcher: str, part: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, __file__, "--measure", *(["--part"] if part else [])]
    for name in ("method", "size", "epochs", "precision", "processes"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = MALLOC | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(*processes: subprocess.Popen[str]) -> dict[str, float]:
    """The slowest process's times."""
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process failed; run it by hand with --measure")
    found = [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]
    return {key: max(each[key] for each in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    k = options.processes
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(k)]
    rows: dict[str, list[dict[str, float]]] = {"1 process": [], f"{k} processes": [], f"{k} apart, a part each": []}
    alone, together, apart = rows.values()
    for _ in range(options.repeats):
        alone.append(finish(start(options)))
        together.append(finish(start(options, *torchrun)))
        apart.append(finish(*(start(options, part=True) for _ in range(k))))
    print(f"{options.method}, resnet18, {options.size}x{options.size}, {options.precision}, {device_name('cpu')}")
    for suffix, kind in (("", "ms"), ("_cpu", "CPU ms of a process")):
        for name, found in rows.items():
            each = [1000 * one[f"step{suffix}"] for one in found]
            print(f"{name:24} {statistics.median(each):8.1f} {kind} a step  {[round(one, 1) for one in each]}")
        exchange = statistics.median(one[f"all_reduce{suffix}"] for one in together)
        own, whole, part = (
            statistics.median(one[f"step{suffix}"] for one in found) for found in (together, alone, apart)
        )
        print(f"{'all-reduce':24} {1000 * exchange:8.1f} {kind}")
        print(f"ratio: {own / (whole / k + exchange):.2f} to 1/{k} + all-reduce, ", end="")
        print(f"{own / (part + exchange):.2f} to parts apart + all-reduce")
    print(f"load average at the end {os.getloadavg()[0]:.1f}: what is above {k} is not from here")


if __name__ == "__main__":
    main()
