"""The model: shapes, counts and gradients, formulas against independent ones."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dskd import (
    ConfigError,
    DecoderStudent,
    DeepFeatureEmbedding,
    Distiller,
    EncoderStudent,
    Teacher,
    get_method,
    replace,
)
from dskd.anomaly_map import anomaly_map, gaussian_filter
from dskd.backbones import BACKBONES
from dskd.discrepancy import per_image, per_position
from dskd.methods import METHODS
from dskd.switches import Map

# Millions of parameters: encoder, embedding, decoder (counted in RD4AD's and torchvision's code, not taken from ours).
PARAMETERS = {
    "resnet18": (2.7828, 11.6800, 3.7032),
    "resnet34": (8.1703, 16.4006, 5.7706),
    "resnet50": (8.5433, 30.8296, 15.8218),
    "wide_resnet50_2": (24.8625, 58.8851, 24.9175),
}


def count(module: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 4)


def images(batch: int = 2, side: int = 64, seed: int = 0, width: int | None = None) -> torch.Tensor:
    return torch.randn(batch, 3, side, width or side, generator=torch.Generator().manual_seed(seed))


def distiller(method: str = "dskd", **values: object) -> Distiller:
    torch.manual_seed(0)
    changes = {key.replace("__", "."): value for key, value in values.items()}
    return Distiller(replace(get_method(method), changes), "resnet18")


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_shapes_and_parameter_counts(backbone: str) -> None:
    facts = BACKBONES[backbone]
    with torch.device("meta"):
        encoder, embedding, decoder = EncoderStudent(facts), DeepFeatureEmbedding(facts), DecoderStudent(facts)
        trunk = encoder(torch.empty(2, 3, 64, 64))
        code = embedding(trunk)
        inverted = decoder(code)
    assert (count(encoder), count(embedding), count(decoder)) == PARAMETERS[backbone]
    assert [scale.shape for scale in trunk] == [scale.shape for scale in inverted]
    channels = BACKBONES[backbone].channels
    assert [tuple(scale.shape[1:]) for scale in trunk] == [(c, 16 // 2**k, 16 // 2**k) for k, c in enumerate(channels)]
    assert tuple(code.shape) == (2, 2 * channels[-1], 2, 2)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_multiply_adds_of_the_table_are_what_torch_counts(backbone: str) -> None:
    found, facts = [], BACKBONES[backbone]
    with torch.device("meta"):
        modules = EncoderStudent(facts), DeepFeatureEmbedding(facts), DecoderStudent(facts)
        value: object = torch.empty(1, 3, 256, 256)
        for module in modules:
            with FlopCounterMode(display=False) as counter:
                value = module(value)
            found.append(counter.get_total_flops() / 2e9)
    assert found == pytest.approx(BACKBONES[backbone].gmac, abs=6e-4)


def test_teacher_never_changes() -> None:
    model = distiller()
    before = copy.deepcopy(model.teacher.state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.students.parameters(), lr=0.1)
    model.loss(images()).backward()
    optimizer.step()
    assert not model.teacher.training
    assert not any(module.training for module in model.teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_map_are_zero_for_a_perfect_student(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = distiller(method)
    perfect = model.teacher(images())
    names = list(model.features(images())[1])
    monkeypatch.setattr(model.students, "forward", lambda *_: dict.fromkeys(names, perfect))
    assert model.loss(images()).item() == 0
    assert model.anomaly_map(images()).abs().max().item() <= (1e-6 if method == "student_ensemble" else 0)


def test_discrepancy_is_one_minus_cosine_and_half_the_squared_distance() -> None:
    teacher, student = images(3, 8, 1), images(3, 8, 2)
    cosine = 1 - functional.cosine_similarity(teacher.double(), student.double())
    distance = (functional.normalize(teacher.double()) - functional.normalize(student.double())).square().sum(1) / 2
    found = per_position(teacher, student).double()
    torch.testing.assert_close(found, cosine, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, distance, atol=1e-6, rtol=0)
    assert ((found >= 0) & (found <= 2)).all()
    assert (per_position(teacher.relu(), student.relu()) <= 1 + 1e-6).all()
    flat = 1 - functional.cosine_similarity(teacher.flatten(1).double(), student.flatten(1).double())
    torch.testing.assert_close(per_image(teacher, student).double(), flat, atol=1e-6, rtol=0)


def test_discrepancy_gradient_is_that_of_the_plain_formula() -> None:
    teacher, weight = images(2, 6, 1), torch.rand(2, 6, 6)
    student = images(2, 6, 2).requires_grad_()
    plain = (functional.normalize(teacher) - functional.normalize(student)).square().sum(1) / 2
    (expected,) = torch.autograd.grad((plain * weight).sum(), student)
    (found,) = torch.autograd.grad((per_position(teacher, student) * weight).sum(), student)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    zero = torch.zeros_like(student).requires_grad_()
    (found,) = torch.autograd.grad(per_position(teacher, zero).sum(), zero)
    assert found.abs().max() == 0


def test_discrepancy_stays_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = per_position(images(2, 16, 1).bfloat16(), images(2, 16, 2).bfloat16())
    assert found.dtype == torch.float32
    assert len(found.unique()) > found.numel() // 2


@pytest.mark.parametrize(("detach", "flows"), [(False, True), (True, False)])
def test_decoder_loss_reaches_the_encoder_unless_detached(detach: bool, flows: bool) -> None:
    model = distiller(embedding__detach=detach, loss__encoder_weight=0.0)
    model.loss(images()).backward()
    reached = sum(p.grad.abs().sum() for p in model.students.encoder.parameters() if p.grad is not None)
    assert (reached > 0) == flows


def falls_below(share: float, model: Distiller) -> bool:
    """Whether the loss gets below this share of the first one within twelve steps; no further step is done."""
    optimizer = torch.optim.Adam(model.train().students.parameters(), lr=0.002)
    first = None
    for _ in range(12):
        loss = model.loss(images())
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < share * first:
            return True
    return False


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_on_a_tiny_set(method: str) -> None:
    assert falls_below(0.8, distiller(method))


def test_each_method_builds_only_the_students_that_it_needs() -> None:
    parts = {name: [part for part, module in distiller(name).students.named_children() if module] for name in METHODS}
    assert parts == {
        "dskd": ["encoder", "embedding", "decoder"],
        "stfpm": ["encoder"],
        "reverse_distillation": ["embedding", "decoder"],
        "smaller_student": ["encoder"],
        "different_family_student": ["encoder"],
        "two_students": ["encoder", "embedding", "decoder"],
        "student_ensemble": ["encoder", "more_encoders"],
    }
    assert count(distiller().students) == 18.166
    via_encoder = distiller(students=["decoder"])  # trained through the decoder alone
    assert via_encoder.students.encoder is not None
    assert list(via_encoder.features(images())[1]) == ["decoder"]


def test_scores_do_not_depend_on_the_batch() -> None:
    model = distiller().eval()
    with torch.inference_mode():
        together = model.anomaly_map(images(4)).amax(dim=(1, 2))
        alone = torch.cat([model.anomaly_map(image[None]).amax(dim=(1, 2)) for image in images(4)])
        other = torch.cat([images(4)[2:], images(2, seed=5)])
        swapped = model.anomaly_map(other).amax(dim=(1, 2))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    assert torch.equal(together[2:], swapped[:2])  # bit for bit at one batch shape


def test_a_size_that_the_decoder_cannot_match_is_refused() -> None:
    with pytest.raises(ValueError, match="48x64: both sides must be multiples of 32"):
        distiller().loss(torch.zeros(1, 3, 48, 64))


SIZES = pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 96), (96, 32)])


@SIZES
def test_stfpm_loss_and_map_are_those_of_the_official_code(height: int, width: int) -> None:
    """gdwang08/STFPM@2598a5e: mean of the squared distance; product at 64x64, then resized; no smoothing."""
    model = distiller("stfpm").eval()
    batch, finest = images(2, height, width=width), (height // 4, width // 4)
    with torch.inference_mode():
        teacher, students = model.features(batch)
        pairs = list(zip(teacher, students["encoder"], strict=True))
        squared = [(functional.normalize(t) - functional.normalize(s)).pow(2).sum(1) for t, s in pairs]
        product = torch.ones(2, *finest)
        for distance in squared:
            product = product * functional.interpolate(distance[:, None], size=finest, mode="bilinear")[:, 0]
        expected = functional.interpolate(product[:, None], size=(height, width), mode="bilinear")[:, 0]
        torch.testing.assert_close(model.loss(batch), sum(distance.mean() for distance in squared))
        torch.testing.assert_close(model.anomaly_map(batch), expected)


@SIZES
def test_reverse_distillation_loss_and_map_are_those_of_the_official_code(height: int, width: int) -> None:
    """hq-deng/RD4AD@6554076: cosine of the flattened maps; sum with aligned corners; scipy's Gaussian of sigma 4."""
    model = distiller("reverse_distillation").eval()
    batch = images(2, height, width=width)
    with torch.inference_mode():
        teacher, students = model.features(batch)
        pairs = list(zip(teacher, students["decoder"], strict=True))
        loss = sum((1 - functional.cosine_similarity(t.flatten(1), s.flatten(1))).mean() for t, s in pairs)
        total = sum(
            functional.interpolate(
                (1 - functional.cosine_similarity(t, s))[:, None], (height, width), mode="bilinear", align_corners=True
            )
            for t, s in pairs
        )
        expected = np.stack([ndimage.gaussian_filter(one.numpy(), sigma=4) for one in total[:, 0]])
        torch.testing.assert_close(model.loss(batch), loss)
        np.testing.assert_allclose(model.anomaly_map(batch).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "sigma"), [(64, 48, 4.0), (16, 16, 4.0), (5, 9, 2.0), (32, 32, 0.6)])
def test_gaussian_filter_equals_scipys(height: int, width: int, sigma: float) -> None:
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))
    expected = np.stack([ndimage.gaussian_filter(one, sigma) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian_filter(maps, sigma).numpy(), expected, atol=1e-5)


def test_smoothing_by_a_share_of_the_shorter_side_fits_all_sizes() -> None:
    scales = [torch.rand(2, 64 // k, 96 // k, generator=torch.Generator().manual_seed(k)) for k in (1, 2, 4)]

    def smoothed(size: tuple[int, int], **options: float) -> torch.Tensor:
        return anomaly_map({"encoder": scales}, Map(**options), size)

    for size, sigma in (((256, 256), 4.0), ((128, 192), 2.0), ((192, 128), 2.0)):
        share = smoothed(size, sigma_share=4 / 256)
        assert torch.equal(share, smoothed(size, sigma=sigma))
        assert torch.equal(share, smoothed(size, sigma_share=4 / 256, sigma=0.0))
        assert not torch.equal(share, smoothed(size, sigma=0.0))


def test_fusion_of_students_and_scales() -> None:
    first, second = torch.full((1, 4, 4), 2.0), torch.full((1, 2, 2), 3.0)
    pair = {"encoder": [first, second], "decoder": [second, second]}

    def fused(**options: str) -> float:
        return anomaly_map(pair, Map(sigma=0.0, **options), (8, 8)).unique().item()

    assert fused() == (2 + 3) + (3 + 3)
    assert fused(scale_fuse="mul") == 2 * 3 + 3 * 3
    assert fused(student_fuse="mul") == (2 + 3) * (3 + 3)
    assert fused(student_fuse="max") == 3 + 3
    assert fused(discrepancy="l2norm") == 2 * 11


class TestTeacherFile:
    def state(self) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in Teacher("resnet18").trunk.state_dict().items()}

    def write(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
        save_file(state, tmp_path / "teacher.safetensors")
        return tmp_path / "teacher.safetensors"

    def test_a_trunk_or_a_whole_model_loads(self, tmp_path: Path) -> None:
        state = self.state()
        state["conv1.weight"] += 1
        del state["bn1.num_batches_tracked"]
        whole = state | {"fc.weight": torch.zeros(1000, 512), "layer4.0.conv1.weight": torch.zeros(512, 256, 3, 3)}
        for saved in (state, whole):
            loaded = Teacher("resnet18", self.write(tmp_path, saved)).trunk.state_dict()
            assert torch.equal(loaded["conv1.weight"], state["conv1.weight"])

    def test_other_files_are_refused_with_the_key(self, tmp_path: Path) -> None:
        missing = self.state()
        del missing["layer2.0.conv1.weight"]
        with pytest.raises(ConfigError, match=r"lacks layer2\.0\.conv1\.weight; a file for resnet18"):
            Teacher("resnet18", self.write(tmp_path, missing))
        with pytest.raises(ConfigError, match=r"has unexpected head\.bias"):
            Teacher("resnet18", self.write(tmp_path, self.state() | {"head.bias": torch.zeros(3)}))
        with pytest.raises(ConfigError, match=r"has other shapes for conv1\.weight"):
            Teacher("resnet18", self.write(tmp_path, self.state() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}))
        (tmp_path / "pickle.pth").write_bytes(b"\x80\x04.")
        with pytest.raises(ConfigError, match="is a pickle of PyTorch"):
            Teacher("resnet18", tmp_path / "pickle.pth")
        (tmp_path / "other.safetensors").write_bytes(b"no weights")
        with pytest.raises(ConfigError, match="not a readable safetensors file"):
            Teacher("resnet18", tmp_path / "other.safetensors")

    def test_the_imagenet_trunk_loads(self, imagenet_weights: Path) -> None:
        teacher = Teacher("resnet18", imagenet_weights)
        assert torch.equal(teacher.trunk.state_dict()["conv1.weight"], load_file(imagenet_weights)["conv1.weight"])


def test_random_teacher_is_the_same_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = Teacher("resnet18")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # and takes nothing from the run's own draws
    assert torch.equal(first(images())[2], Teacher("resnet18")(images())[2])
