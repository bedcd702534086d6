"""BatchNorm's statistics taken anew: those of a plain loop, for what is kept and measured; nothing else moves."""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dskd import Distiller
from harness.run.batch_norm import put_back, renew, renewal_batches
from harness.run.batches import to_images
from harness.run.device import open_device
from harness.run.features import TeacherFeatures
from tests.run.small import SMALL
from tests.run.test_train import PIXELS, mean_of_maps, same, spec, trained

STATISTICS = ("running_mean", "running_var")


def by_hand(students: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean and unbiased variance of what each BatchNorm sees of a batch of images, over the batches their mean."""
    seen = defaultdict(list)

    def look(name: str, layer_input: Tensor) -> None:
        seen[f"{name}.running_mean"].append(layer_input.mean((0, 2, 3)))
        seen[f"{name}.running_var"].append(layer_input.var((0, 2, 3)))

    students = copy.deepcopy(students).train()
    for name, layer in students.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
    with torch.no_grad():
        for images in batches:
            students(images, [])
    return {name: torch.stack(values).mean(dim=0) for name, values in seen.items()}


@pytest.mark.parametrize(("method", "ema", "batch"), [("dskd", 0.5, 4), ("stfpm", 0.0, 16)])
def test_they_are_those_of_a_plain_loop_over_whole_batches(method: str, ema: float, batch: int) -> None:
    device = open_device("cpu", "fp32")
    recipe = {"backbone": SMALL, "train__select": "last", "train__batch_size": batch, "train__ema": ema}
    plain, curve, _ = trained(spec(method, **recipe), device)
    found, again, _ = trained(spec(method, **recipe, train__renew_batch_norm=True), device)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0)).numpy()
    batches = [order[:4], order[4:8]] if batch == 4 else [order]  # 3 are left; and none is whole
    expected = by_hand(plain.students, [to_images(PIXELS[positions]) for positions in batches])
    moved = 0
    for name, value in plain.students.state_dict().items():
        own = found.students.state_dict()[name]
        if name in expected:
            torch.testing.assert_close(own, expected.pop(name), rtol=1e-3, atol=1e-5)
            moved += not torch.equal(own, value)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(own, value), name
    assert not expected
    assert moved > 10
    assert [epoch.loss for epoch in again] == [epoch.loss for epoch in curve]
    assert {layer.momentum for layer in found.students.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}
    assert not found.students.training


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_is_measured_along_the_way_is_what_a_training_of_that_length_keeps(ema: float) -> None:
    device = open_device("cpu", "fp32")
    recipe = {"backbone": SMALL, "train__select": "last", "train__ema": ema, "train__renew_batch_norm": True}
    seen = {}
    run = dataclasses.replace(spec(**recipe, train__epochs=3), evaluate_at=(1, 2, 3))
    long, *_ = trained(run, device, along=lambda epoch, settle: seen.update({epoch: mean_of_maps(settle())}))
    unwatched, *_ = trained(spec(**recipe, train__epochs=3), device)
    short, *_ = trained(spec(**recipe, train__epochs=2), device)
    assert same(long, unwatched)
    assert (seen[2], seen[3]) == (mean_of_maps(short), mean_of_maps(long))


def test_the_epoch_that_is_selected_has_its_own() -> None:
    device = open_device("cpu", "fp32")
    recipe = {"backbone": SMALL, "train__epochs": 4, "train__lr": 0.05}
    _, plain, _ = trained(spec(**recipe), device, held_out=3)
    model, curve, kept = trained(spec(**recipe, train__renew_batch_norm=True), device, held_out=3)
    assert [epoch.loss for epoch in curve] == [epoch.loss for epoch in plain]
    maps = [epoch.held_out_map for epoch in curve]
    assert kept == 1 + int(np.argmin(maps))
    assert maps != [epoch.held_out_map for epoch in plain]
    with torch.inference_mode():
        assert model.anomaly_map(to_images(PIXELS[-3:])).mean().item() == pytest.approx(min(maps), rel=1e-4)


class Odd(nn.Module):
    """Students of a plug-in: random numbers and a buffer of their own beside BatchNorm, or without it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Dropout(0.5))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor, _teacher: object) -> Tensor:
        self.passes += 1
        return self.body(images)


def test_nothing_else_moves_and_all_can_be_put_back() -> None:
    device, model = open_device("cpu", "fp32"), Distiller(spec().method, SMALL)
    features, batches = TeacherFeatures(model.teacher, PIXELS, 4, device), renewal_batches(np.arange(11), 4)
    for norm, parts in ((nn.BatchNorm2d(4), 3), (nn.GroupNorm(2, 4), 0), (nn.BatchNorm2d(4, affine=False), 3)):
        students = Odd(norm)
        before, generator = copy.deepcopy(students.state_dict()), torch.get_rng_state()
        kept = renew(students, features, batches, device)
        moved = [name for name, value in students.state_dict().items() if not torch.equal(value, before[name])]
        assert len(moved) == parts, moved
        assert all(name.startswith("body.1.") for name in moved)
        assert torch.equal(torch.get_rng_state(), generator)
        put_back(kept)
        assert all(torch.equal(value, before[name]) for name, value in students.state_dict().items())


def test_a_pass_that_fails_leaves_the_layers_as_they_train() -> None:
    students = Odd(nn.BatchNorm2d(4, momentum=0.3))
    with pytest.raises(AttributeError):
        renew(students, None, [np.arange(2)], open_device("cpu", "fp32"))
    assert students.body[1].momentum == 0.3
