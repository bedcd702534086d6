"""The same numbers in every process, and wherever the teacher's features are kept."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scene import Scene
from sheet import Sheet

import harness.run.compiled
from harness.run.compiled import Compiled

STEPS = 12
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("stfpm", {}),
    ("dskd", {}),
    ("reverse_distillation", {}),
    ("dskd", {"decoder.up": "bilinear"}),
]


def run(sheet: Sheet) -> None:
    """The block."""
    with sheet.trying("plain steps"):
        first, second = digests(sheet, [False, False], sheet.left_s * 0.6)
        for name in first:
            sheet.check(f"{name}: two processes end with the same bits", first[name] == second[name])
    places = [("resnet18", 8)] if sheet.small else [("resnet18", 16), ("resnet18", 32), ("wide_resnet50_2", 32)]
    for backbone, batch in places:
        if sheet.enough(f"features of {backbone}", 5):
            with sheet.trying(f"features of {backbone}, batch {batch}"):
                features(sheet, backbone, batch)
    if sheet.enough("compiled", 25):
        with sheet.trying("compiled steps"):
            first, second = digests(sheet, [True, True], sheet.left_s - 2)
            for name in first:
                what = f"{name}: two processes that compile for themselves end with the same bits"
                sheet.check(what, first[name] == second[name])
    same = sum(one["ok"] for one in sheet.found["checks"])
    sheet.say(f"{same} of {len(sheet.found['checks'])} are the same bit for bit")


def digests(sheet: Sheet, compiled: list[bool], seconds: float) -> list[dict[str, str]]:
    """What processes side by side end with, each with empty caches of compilers."""
    with tempfile.TemporaryDirectory() as scratch:
        started = []
        for number, one in enumerate(compiled):
            cache = Path(scratch) / str(number)
            own = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
            command = [sys.executable, __file__, "--kind", sheet.kind, *(["--compiled"] if one else [])]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | own))
        try:
            outputs = [one.communicate(timeout=seconds)[0] for one in started]
        finally:
            for one in started:
                one.kill()
        if any(one.returncode for one in started):
            raise RuntimeError(f"a process ended with {[one.returncode for one in started]}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def features(sheet: Sheet, backbone: str, batch: int) -> None:
    """Kept on the device, on the host, or recomputed: equal bit for bit, for whole and for incomplete batches."""
    scene = Scene(sheet.kind, "stfpm", 32 if sheet.small else 256, 3 * batch + 3, batch, backbone=backbone)
    made = {keep: scene.features(keep) for keep in ("device", "host", "recomputed")}
    order = np.random.default_rng(0).permutation(scene.images)
    for positions in (order[:batch], order[-5:]):
        expected = made["device"][positions]
        for keep in ("host", "recomputed"):
            pairs = list(zip(made[keep][positions], expected, strict=True))
            apart = max((a.double() - b.double()).abs().max().item() for a, b in pairs)
            name = f"features of {backbone}, {len(positions)} of batch {batch}: {keep} as kept on the device"
            sheet.check(name, all(torch.equal(*pair) for pair in pairs), f"at most {apart:.1e} apart" if apart else "")


def digest(scene: Scene, compiled: bool) -> str:
    """Of the losses and the students after STEPS steps (on a CPU 4)."""
    learner, kept = scene.learner(), scene.features()
    if compiled:
        made = Compiled(learner.students, scene.device)
        learner.forward = made.begin([scene.batch], learner.distiller, kept, scene.device).forward
    learner.students.train()
    total = hashlib.sha256()
    for positions in islice(scene.batches(), 4 if scene.kind == "cpu" else STEPS):
        total.update(learner.step(kept, positions).cpu().numpy().tobytes())
    for value in learner.students.state_dict().values():
        total.update(value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", required=True)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    small = options.kind == "cpu"
    if small:
        harness.run.compiled.BACKEND = "aot_eager"
    found = {}
    for method, changes in SETTINGS[: 1 if options.compiled else 2 if small else len(SETTINGS)]:
        recipe = tuple(changes.items())
        scene = Scene(
            options.kind, method, 32 if small else 128, 12 if small else 40, 8 if small else 16, recipe=recipe
        )
        found[" ".join([method, *map(str, changes.values())])] = digest(scene, options.compiled)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
