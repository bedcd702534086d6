"""Our `stfpm` against anomalib's on the same weights and images: features, loss, gradient, maps, scores, training.

anomalib needs a virtual environment of its own, with the torch and torchvision that dskd is used with:

    python -m venv ANOMALIB_VENV && printf 'torch==2.13.0\\ntorchvision==0.28.0\\n' > constraints.txt
    ANOMALIB_VENV/bin/pip install -c constraints.txt anomalib timm safetensors
    PYTHONPATH=. OMP_NUM_THREADS=1 ANOMALIB_VENV/bin/python benchmarks/checks/anomalib_stfpm.py \\
        --weights RESNET18.safetensors --images FOLDER

Prints a Markdown table and exits 1 if a difference is above its tolerance, or a control's is not. Downloads nothing.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dskd.anomaly_map import anomaly_map, image_scores
from dskd.config import replace
from dskd.distiller import Distiller
from dskd.methods import METHODS
from dskd.timm_import import timm  # before anomalib: its torchvision does not load under a CPU-only torch otherwise

# isort: split
from anomalib.models.image.stfpm.loss import STFPMLoss
from anomalib.models.image.stfpm.torch_model import STFPMModel

LAYERS = ("layer1", "layer2", "layer3")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP, STEPS = 3, 5
# Of the largest difference over the largest value; a gradient passes through the whole student, hence its own.
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
# Training multiplies rounding errors. By how much is measured: anomalib against itself with every weight and buffer
# at the start moved by about one rounding error (NOISE). Ours may differ from anomalib's by MARGIN times that.
NOISE, MARGIN = 1e-7, 3
OUR_METHOD = METHODS["stfpm"]
# anomalib's map: half squared distances, each scale upsampled to the image, then the product.
THEIR_MAP = replace(
    OUR_METHOD,
    {
        "map.discrepancy": "pixel_cos",
        "map.scale_fuse": "mul",
        "map.fuse_at": "image",
        "map.align_corners": False,
        "map.sigma": 0.0,
    },
).map


@dataclass
class Table:
    """The rows of the printed table and whether all of them are as they must be."""

    passed: bool = True
    rows: list[str] = field(default_factory=list)

    def add(
        self,
        quantity: str,
        ours: Sequence[Tensor],
        theirs: Sequence[Tensor],
        tolerance: float = TOLERANCE,
        control: bool = False,
    ) -> None:
        """One row for tensors that must be equal; with `control` they must differ by more than the tolerance."""
        absolute, relative = differences(ours, theirs)
        largest = [max(tensor.abs().max().item() for tensor in side) for side in (ours, theirs)]
        good = relative > tolerance if control else relative <= tolerance  # a NaN is neither
        self.passed &= good
        limit = f"{'>' if control else '≤'} {tolerance:.1e}"
        self.rows.append(
            f"| {quantity} | {largest[0]:.6g} | {largest[1]:.6g} | {absolute:.1e} | {relative:.1e} | {limit} |"
            f" {'yes' if good else '**NO**'} |"
        )


def differences(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference, and the largest of a pair over the largest value of its second tensor; NaN if any is."""
    absolute, relative = [], []
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
        absolute.append((a.detach().double() - b.detach().double()).abs().max())
        relative.append(absolute[-1] / b.detach().double().abs().max())
    return torch.stack(absolute).max().item(), torch.stack(relative).max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ResNet-18 in timm's names")
    parser.add_argument("--images", type=Path, required=True, help="folder; the first --count by sorted path are used")
    parser.add_argument("--pattern", default="*.jpg", help="of the images in the folder and below")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=256)
    args = parser.parse_args()
    images = read_images(sorted(args.images.rglob(args.pattern))[: args.count], args.image_size)
    torch.manual_seed(0)
    ours, theirs = Distiller(OUR_METHOD, "resnet18", args.weights), build_anomalib(args.weights)

    table = Table()
    for name in ("random student", f"after {WARM_UP} steps"):
        if name != "random student":
            train(ours, ours.loss, images, WARM_UP)
        theirs.student_model.feature_extractor.load_state_dict(ours.students.encoder.trunk.state_dict())
        compare(table, name, ours, theirs, images)
    compare_training(table, ours, theirs, images)

    print(f"{len(images)} images of {args.image_size}x{args.image_size}, float32, {torch.get_num_threads()} thread(s);")
    packages = [f"{name} {version(name)}" for name in ("anomalib", "torch", "torchvision", "timm", "numpy")]
    print(", ".join([*packages, f"Python {platform.python_version()}"]), end="\n\n")
    print("| quantity (largest value shown) | ours | anomalib | largest difference | relative | allowed | good |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    print("\n".join(table.rows))
    sys.exit(0 if table.passed else 1)


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Normalised images (B, 3, size, size): the same tensor goes to both, anomalib's pre-processor is not used."""
    if len(paths) < 4:
        sys.exit(f"{len(paths)} images found, 4 or more are needed: see --images, --pattern and --count")
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BILINEAR)) for path in paths]
    scaled = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def build_anomalib(weights: Path) -> STFPMModel:
    """anomalib's model with the teacher of the file, read without dskd's code; it would download one of its own."""
    create = timm.create_model
    untrained = mock.Mock(side_effect=lambda *args, **options: create(*args, **options | {"pretrained": False}))
    with mock.patch.object(timm, "create_model", untrained):
        model = STFPMModel(layers=LAYERS, backbone="resnet18")
    teacher = model.teacher_model.feature_extractor
    # The file may hold more than the trunk, and lack the counters, which no evaluation reads.
    missing = teacher.load_state_dict(load_file(weights), strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return model


def compare(table: Table, name: str, ours: Distiller, theirs: STFPMModel, images: Tensor) -> None:
    """All rows for one state of the student; leaves both students as they were."""
    state = {key: value.clone() for key, value in ours.students.encoder.trunk.state_dict().items()}
    their_trunk, our_trunk = theirs.student_model.feature_extractor, ours.students.encoder.trunk

    for batch in (len(images), 3):  # in train mode: BatchNorm takes the batch's statistics
        ours.train(), theirs.train()
        our_loss = ours.loss(images[:batch]) * batch / 2
        their_loss = STFPMLoss()(*theirs(images[:batch]))
        table.add(f"{name}: loss, batch {batch}, ours × {batch / 2:g}", [our_loss], [their_loss])
        our_gradient = torch.autograd.grad(our_loss, tuple(our_trunk.parameters()))
        their_gradient = torch.autograd.grad(their_loss, tuple(their_trunk.parameters()))
        table.add(f"{name}: gradient of that", [flat(our_gradient)], [flat(their_gradient)], GRADIENT_TOLERANCE)
        our_trunk.load_state_dict(state), their_trunk.load_state_dict(state)

    ours.eval(), theirs.eval()
    with torch.no_grad():
        teacher, students = ours.features(images)
        their_teacher, their_student = theirs.teacher_model(images), theirs.student_model(images)
        table.add(f"{name}: teacher, 3 layers", teacher, [their_teacher[layer] for layer in LAYERS])
        table.add(f"{name}: student, 3 layers", students["encoder"], [their_student[layer] for layer in LAYERS])
        size, generator = tuple(images.shape[-2:]), theirs.anomaly_map_generator
        scales = ours.discrepancies(images)["encoder"]
        table.add(
            f"{name}: maps of the 3 layers",
            [anomaly_map({"encoder": [scale]}, THEIR_MAP, size) for scale in scales],
            [generator.compute_layer_map(their_teacher[at], their_student[at], size)[:, 0] for at in LAYERS],
        )
        maps, predicted = ours.anomaly_map(images, THEIR_MAP), theirs(images)
        their_maps = predicted.anomaly_map[:, 0]
        table.add(f"{name}: map", [maps], [their_maps])
        table.add(f"{name}: image scores", [image_scores(maps, OUR_METHOD.score)], [predicted.pred_score[:, 0]])
        official = ours.anomaly_map(images) / 8  # fused at layer1's size; a factor of 2 per layer
        table.add(f"{name}: control: our own map / 8", [official], [their_maps], control=True)


def compare_training(table: Table, ours: Distiller, theirs: STFPMModel, images: Tensor) -> None:
    """The same steps from the same start: anomalib's loss is B/2 times ours, so lr and weight decay are scaled."""
    our_trunk, their_trunk = ours.students.encoder.trunk, theirs.student_model.feature_extractor
    start = {key: value.clone() for key, value in our_trunk.state_dict().items()}
    moved = {
        key: value * (1 + NOISE * torch.randn_like(value)) if value.is_floating_point() else value
        for key, value in start.items()
    }

    def run_ours(lr_factor: float = 1.0) -> list[list[Tensor]]:
        our_trunk.load_state_dict(start)
        losses = train(ours, ours.loss, images, STEPS, lr_factor=lr_factor)
        with torch.no_grad():
            maps = ours.eval().anomaly_map(images, THEIR_MAP)
        return [[losses * len(images) / 2], clones(our_trunk), [maps]]

    def run_theirs(state: dict[str, Tensor]) -> list[list[Tensor]]:
        their_trunk.load_state_dict(state)
        losses = train(theirs, lambda batch: STFPMLoss()(*theirs(batch)), images, STEPS, loss_scale=len(images) / 2)
        with torch.no_grad():
            maps = theirs.eval()(images).anomaly_map[:, 0]
        return [[losses], clones(their_trunk), [maps]]

    reference, noisy = run_theirs(start), run_theirs(moved)
    limits = [MARGIN * differences(*pair)[1] for pair in zip(noisy, reference, strict=True)]
    names = (f"losses, ours × {len(images) / 2:g}", "the student's weights and buffers", "map")
    for name, mine, anomalib, limit in zip(names, run_ours(), reference, limits, strict=True):
        table.add(f"{STEPS} more steps: {name}", mine, anomalib, limit)
    faster = run_ours(lr_factor=1.02)
    table.add(f"{STEPS} more steps: control: losses with our lr 2 % higher", faster[0], reference[0], limits[0], True)


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    images: Tensor,
    steps: int,
    *,
    loss_scale: float = 1.0,
    lr_factor: float = 1.0,
) -> Tensor:
    """SGD by our recipe on one batch, for a loss that is `loss_scale` times ours; the losses before each step."""
    recipe = OUR_METHOD.train
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.lr * lr_factor / loss_scale,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay * loss_scale,
    )
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(images)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def clones(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


if __name__ == "__main__":
    main()
