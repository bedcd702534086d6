"""anomalib's side of `peers.py` and `metrics.py`: runs in anomalib's own environment and imports nothing of ours.

    ANOMALIB_VENV/bin/python benchmarks/speed/anomalib_side.py stfpm '{"root": ...}'
    ANOMALIB_VENV/bin/python benchmarks/speed/anomalib_side.py metrics '{"file": ...}'

The last line printed is a JSON object.
"""
# ruff: noqa: E402

import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import torch

warnings.filterwarnings("ignore")
if torch.version.cuda is None:  # torchvision's published wheel is a CUDA build; see dskd/timm_import.py
    for name, schema in {
        "nms": "Tensor dets, Tensor scores, float",
        "qnms": "Tensor dets, Tensor scores, float",
    }.items():
        torch.library.define(f"torchvision::{name}", f"({schema} iou_threshold) -> Tensor")

import timm
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, AUROC
from anomalib.models import Stfpm
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

LAYERS = ("layer1", "layer2", "layer3")


def stfpm(
    root: str, category: str, weights: str, seed: int, epochs: int, batch: int, precision: str, every: int
) -> dict[str, Any]:
    """Fit and test as the Engine does it; `every`: validate after so many epochs. Pictures of maps are switched off."""
    seed_everything(seed)
    started = time.perf_counter()
    create = timm.create_model
    # It would download a teacher; and its student starts as ours, and as the official code's.
    own = mock.Mock(side_effect=lambda *a, **o: create(*a, **o | {"pretrained": False, "zero_init_last": False}))
    with mock.patch.object(timm, "create_model", own):
        model = Stfpm(backbone="resnet18", layers=LAYERS, visualizer=False)
    teacher = model.model.teacher_model.feature_extractor
    missing = teacher.load_state_dict(load_file(weights), strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    data = MVTecAD(root, category, train_batch_size=batch, eval_batch_size=batch, num_workers=2)
    with tempfile.TemporaryDirectory() as folder:
        options = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "default_root_dir": folder}
        engine = Engine(max_epochs=epochs, precision=precision, check_val_every_n_epoch=every, **options)
        engine.fit(model, datamodule=data)
        fitted = time.perf_counter()
        (found,) = engine.test(model, datamodule=data)
    return {
        "inside_s": time.perf_counter() - started,
        "fit_s": fitted - started,
        "image_auroc": found["image_AUROC"],
        "pixel_auroc": found["pixel_AUROC"],
        "peak_host_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def metrics(file: str, repeats: int) -> dict[str, Any]:
    """Of maps float32 (N, H, W) and masks bool (N, H, W) in an npz file: seconds and values of pixel metrics."""
    with np.load(file) as stored:
        maps, masks = torch.from_numpy(stored["maps"]), torch.from_numpy(stored["masks"])
    # In one update: torchmetrics normalises scores outside [0, 1] per update.
    batch = ImageBatch(image=torch.zeros(len(maps), 3, *maps.shape[1:]), anomaly_map=maps, gt_mask=masks)

    def of_anomalib(kind: Callable[..., Any]) -> Callable[[], float]:
        def run() -> float:
            metric = kind(fields=["anomaly_map", "gt_mask"])
            metric.update(batch)
            return float(metric.compute())

        return run

    flat, truth = maps.flatten(), masks.flatten().int()
    tasks = {
        "anomalib_auroc": of_anomalib(AUROC),
        "anomalib_aupro": of_anomalib(AUPRO),
        "torchmetrics_auroc": lambda: float(binary_auroc(flat, truth)),
        "torchmetrics_ap": lambda: float(binary_average_precision(flat, truth)),
    }
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            found[name] = task()
            seconds.append(time.perf_counter() - started)
        found[f"{name}_s"] = statistics.median(seconds)
    return found


if __name__ == "__main__":
    result = {"stfpm": stfpm, "metrics": metrics}[sys.argv[1]](**json.loads(sys.argv[2]))
    packages = ("anomalib", "torch", "torchvision", "timm", "lightning", "torchmetrics")
    print(json.dumps(result | {"packages": {name: version(name) for name in packages}}))
