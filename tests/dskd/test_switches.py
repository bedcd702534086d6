"""The switches of a method: what each one changes, and which cannot stand together."""

import pytest
import torch
from torch.nn import functional

from dskd import ConfigError, Distiller, get_method, replace
from dskd.anomaly_map import anomaly_map, calibrate, image_scores
from dskd.discrepancy import of_students, per_position
from dskd.methods import METHODS
from dskd.switches import Map, Method
from dskd.tuned import TUNED, TUNED_ON
from tests.dskd.test_distiller import count, distiller, images


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("stfpm", {"embedding.detach": True}, "embedding: there is no decoder student"),
        ("stfpm", {"decoder.up": "bilinear"}, "decoder: there is no decoder student"),
        ("reverse_distillation", {"encoder.backbone": "resnet34"}, "encoder: there is no encoder student"),
        ("stfpm", {"loss.decoder_weight": 2}, "loss.decoder_weight: `decoder` is not among `students`"),
        (
            "dskd",
            {"embedding.kind": "layer4", "embedding.source": "both"},
            "embedding.kind: layer4 is a stage of the enc",
        ),
        ("dskd", {"embedding.kind": "mff_1x1", "embedding.blocks": 2}, "embedding.kind: mff_1x1 has no stage"),
        ("dskd", {"embedding.width": 32}, "embedding.width: 32 is not possible; one of: backbone, 64"),
        ("dskd", {"encoder.count": 2}, r"encoder.count: 2 encoder students stand alone; write students: \[encoder\]"),
        (
            "stfpm",
            {"encoder.backbone": "resnet34", "encoder.init": "imagenet"},
            "encoder.init: imagenet is the teacher's",
        ),
        ("dskd", {"loss.mse_weight": 2}, "loss.mse_weight: 2 counts only with kind: cos_mse; this is kind: pixel_cos"),
        ("dskd", {"train.encoder_lr": 0.1}, "train.encoder_lr: 0.1 counts only with optimizer: split"),
        ("stfpm", {"train.optimizer": "split"}, "train.optimizer: split needs an encoder and a decoder"),
        ("stfpm", {"map.scale_weights": [1, 1, 2]}, "map.scale_weights: a product's factors cannot be weighted"),
        (
            "dskd",
            {"map.student_fuse": "noisy_or", "map.encoder_weight": 2},
            "they do not count with student_fuse: noisy_or",
        ),
        ("dskd", {"layers": [2, 3], "map.scale_weights": [1, 1, 2]}, r"write layers: \[1, 2, 3\] and a weight of 0"),
        ("reverse_distillation", {"map.student_fuse": "error_disagreement"}, "nobody to disagree with"),
        ("student_ensemble", {"map.scale_fuse": "mul"}, "have no product; write scale_fuse: sum"),
        ("student_ensemble", {"train.select": "val_normal"}, "train.select: val_normal compares mean maps"),
        ("dskd", {"map.sigma_share": 0.3}, "map.sigma_share: 0.3 is not possible; write 0 .* to 0.25"),
        ("dskd", {"map.sigma_share": -0.1}, "map.sigma_share: -0.1 is not possible"),
        ("stfpm", {"map.sigma_share": 0.02, "map.sigma": 2}, "map.sigma: 2 does not count beside sigma_share: 0.02"),
        ("dskd", {"train.ema": 1}, "train.ema: 1.0 is not possible"),
        ("dskd", {"train.schedule": "linear"}, "one of: constant, cosine, one_cycle"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(method: str, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(get_method(method), values)


# Changes in millions of parameters of dskd on resnet18, counted by hand from the layers that a switch adds or removes.
@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        ({}, 18.166),
        ({"embedding.source": "teacher"}, 18.166),
        ({"embedding.detach": True}, 18.166),
        # + 3x3 of 64->128 and of 128->256, + 256 input channels of the stage's first 3x3 and of its shortcut
        ({"embedding.source": "both"}, 18.166 + (9 * 64 * 128 + 9 * 128 * 256 + (9 + 1) * 256 * 512) / 1e6),
        # the trunk's own layer4 is 8.3937 M (counted: method.md 2.8), MFF + OCE are 11.6800 M
        ({"embedding.kind": "layer4"}, 18.166 - 11.68 + 8.3937),
        ({"embedding.kind": "oce_only"}, 18.166 - 11.68 + 8.3937),
        ({"embedding.kind": "mff_1x1"}, 18.166 - 11.0152 + (768 * 512 + 2 * 512) / 1e6),
        ({"embedding.blocks": 1}, 18.166 - (2 * 9 * 512 * 512 + 4 * 512) / 1e6),
        # each 2x2 becomes a 3x3, each 2x2 shortcut a 1x1
        (
            {"decoder.up": "bilinear"},
            18.166 + (5 - 3) * (512 * 256 + 256 * 128 + 128 * 64) / 1e6,
        ),
        # for de-ResNet's 3.7032 M a whole resnet18 without head, stem and layer1, two BatchNorms a stage half as wide
        (
            {"decoder.mirror": True},
            18.166 - 3.7032 + (11_689_512 - 513_000 - 9_408 - 128 - 147_968 - 2 * (512 + 256 + 128)) / 1e6,
        ),
        ({"students": ["decoder"]}, 18.166),
    ],
)
def test_a_switch_changes_the_parameters_that_it_says(values: dict, parameters: float) -> None:
    model = Distiller(replace(get_method("dskd"), values), "resnet18")
    assert count(model.students) == pytest.approx(parameters, abs=1.1e-4)
    teacher, students = model.features(images())
    for pyramid in students.values():
        assert [scale.shape for scale in pyramid] == [scale.shape for scale in teacher]
    model.loss(images()).backward()
    unused = [name for name, p in model.students.named_parameters() if p.grad is None]
    assert not unused  # a parameter that never learns would be counted for nothing, and stop DDP


def test_width_and_block_order() -> None:
    def parameters(backbone: str, **values: object) -> list[float]:
        with torch.device("meta"):
            changes = {key.replace("__", "."): value for key, value in values.items()}
            students = Distiller(replace(get_method("dskd"), changes), backbone).students
        return [count(stage) for stage in students.decoder.stages] + [count(students.embedding)]

    # method.md 2.8 gives d3 / d2 / d1 in encoder order: 3, 4, 6 blocks
    assert parameters("resnet34")[:3] == [4.0013, 1.2966, 0.4727]
    mirrored = parameters("resnet34", decoder__block_order="mirrored")
    block = {planes: (2 * 9 * planes**2 + 4 * planes) / 1e6 for planes in (256, 64)}
    assert mirrored[:3] == pytest.approx([4.0013 + 3 * block[256], 1.2966, 0.4727 - 3 * block[64]], abs=1.1e-4)
    assert parameters("wide_resnet50_2", embedding__width=64)[3] == pytest.approx(10.6220 + 20.2076, abs=1.1e-4)


def test_losses_are_the_formulas() -> None:
    pair = {}

    def loss(**values: object) -> float:
        model = distiller("stfpm", **{f"loss__{key}": value for key, value in values.items()}).eval()
        with torch.inference_mode():
            pair["teacher"], students = model.features(images())
            pair["student"] = students["encoder"]
            return model.loss(images()).item()

    mse = loss(kind="mse")
    expected = sum(functional.mse_loss(s, t).item() for t, s in zip(pair["teacher"], pair["student"], strict=True))
    assert mse == pytest.approx(expected, rel=1e-5)
    assert loss(kind="cos_mse", mse_weight=0.25) == pytest.approx(loss(kind="pixel_cos") + 0.25 * mse, rel=1e-5)
    weighted = loss(kind="pixel_cos", scale_weights=[0, 2, 0], encoder_weight=3)
    assert weighted == pytest.approx(6 * per_position(pair["teacher"][1], pair["student"][1]).mean().item(), rel=1e-5)


class TestMaps:
    def test_weights_of_students_and_scales(self) -> None:
        pair = {"encoder": [torch.full((1, 4, 4), 2.0)] * 3, "decoder": [torch.full((1, 4, 4), 5.0)] * 3}

        def fused(**options: object) -> float:
            return anomaly_map(pair, Map(sigma=0.0, **options), (4, 4)).unique().item()

        assert fused(scale_weights=(1.0, 2.0, 0.0)) == 3 * 2 + 3 * 5
        assert fused(encoder_weight=2.0, decoder_weight=0.0) == 2 * 3 * 2
        assert fused(encoder_weight=3.0, student_fuse="max") == 3 * 3 * 2

    def test_noisy_or_of_each_scale(self) -> None:
        pair = {"encoder": [torch.full((1, 4, 4), 0.5)], "decoder": [torch.full((1, 4, 4), 0.8)]}
        assert anomaly_map(pair, Map(student_fuse="noisy_or", sigma=0.0), (4, 4)).unique().item() == pytest.approx(0.9)

    def test_error_and_disagreement_share_out_the_mean_discrepancy(self) -> None:
        teacher, students = images(2, 8, 1), [images(2, 8, seed) for seed in (2, 3, 4)]
        found = of_students(teacher, students)
        mean = torch.stack([per_position(teacher, student) for student in students]).mean(dim=0)
        torch.testing.assert_close(found["error"] + found["disagreement"], mean)
        unit = torch.stack([functional.normalize(student) for student in students])
        torch.testing.assert_close(found["disagreement"], unit.var(dim=0, correction=0).sum(dim=1) / 2)
        torch.testing.assert_close(found["mean_feature"], 1 - functional.cosine_similarity(teacher, unit.mean(dim=0)))

    def test_the_ensembles_map_is_standardised_by_normal_images(self) -> None:
        model = distiller("student_ensemble").eval()
        batches = [images(4, seed=seed) for seed in (1, 2)]
        with torch.inference_mode():
            kept = [model.discrepancies(batch) for batch in batches]
            calibration = calibrate(kept)
            error = torch.cat([one["error"][1] for one in kept]).double()
            assert calibration["error"][1] == pytest.approx(
                [error.mean().item(), error.std(correction=0).item()], rel=1e-6
            )
            maps = torch.cat([model.anomaly_map(batch, calibration=calibration) for batch in batches])
        assert abs(maps.mean().item()) < 1e-3  # of the images that it was made with
        expected = sum(
            (kept[0][name][0] - mean) / std
            for name in ("error", "disagreement")
            for mean, std in [calibration[name][0]]
        )
        only_fine = anomaly_map(
            kept[0],
            Map(student_fuse="error_disagreement", scale_weights=(1.0, 0.0, 0.0), sigma=0.0),
            (16, 16),
            calibration,
        )
        torch.testing.assert_close(only_fine, expected)

    def test_topk_mean(self) -> None:
        maps = torch.arange(400.0).view(1, 20, 20)
        assert image_scores(maps, "topk_mean").item() == (396 + 397 + 398 + 399) / 4

    @pytest.mark.parametrize("fuse", ["mean_feature", "noisy_or", "error_disagreement"])
    def test_students_of_dskd_can_be_fused_by_features(self, fuse: str) -> None:
        with torch.inference_mode():
            maps = distiller("dskd", map__student_fuse=fuse).eval().anomaly_map(images())
        assert maps.shape == (2, 64, 64)
        assert maps.isfinite().all()


class TestRecipes:
    @pytest.mark.parametrize("name", METHODS)
    def test_common_is_dskds_recipe_on_the_methods_own_architecture(self, name: str) -> None:
        own, common, dskd = get_method(name), get_method(name, "common"), get_method("dskd")
        for part in ("loss", "map", "score", "train"):
            assert getattr(common, part) == getattr(dskd, part)
        for part in ("students", "encoder", "embedding", "decoder", "layers"):
            assert getattr(common, part) == getattr(own, part)
        assert (common is own) == (name in ("dskd", "two_students"))  # one run, not two

    @pytest.mark.parametrize("where", TUNED)
    def test_tuned_ones_see_a_tenth_and_keep_the_architecture(self, where: str) -> None:
        for name in TUNED[where]:
            own, found = get_method(name), get_method(name, TUNED_ON + where)
            share = 1 - own.train.holdout if own.train.select == "val_normal" else 1
            assert found.train.epochs <= own.train.epochs * share / 10
            for part in ("students", "encoder", "embedding", "decoder", "layers"):
                assert getattr(found, part) == getattr(own, part)

    def test_names_that_do_not_exist(self) -> None:
        with pytest.raises(ConfigError, match=r"'comon' is not possible; did you mean 'common'"):
            get_method("dskd", "comon")

    def test_tuned_ones_are_for_other_data_than_chose_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = {"surfaces": {"dskd": {"train.lr": 0.001, "map.sigma": 1.0}}, "mtd": {"dskd": {"train.lr": 0.002}}}
        monkeypatch.setattr("dskd.methods.TUNED", chosen)
        for data, recipe, lr in (("mtd", "tuned_on_surfaces", 0.001), ("surfaces", "tuned_on_mtd", 0.002)):
            found = get_method("dskd", "tuned", data)
            assert (found.recipe, found.train.lr) == (recipe, lr)
            assert found == get_method("dskd", recipe, data)
            assert found.students == METHODS["dskd"].students
            other = {"mtd": "tuned_on_mtd", "surfaces": "tuned_on_surfaces"}[data]
            with pytest.raises(ConfigError, match=f"{other} was chosen by the test images of {data}"):
                get_method("dskd", other, data)
        assert get_method("dskd", "tuned", "folder").recipe == "tuned_on_surfaces"
        with pytest.raises(ConfigError, match="tuned is known for dskd, and not for stfpm; `harness search` finds one"):
            get_method("stfpm", "tuned")
        with pytest.raises(ConfigError, match=r"'tuned_on_mdt' is not possible; did you mean 'tuned_on_mtd'"):
            get_method("dskd", "tuned_on_mdt")


def test_a_student_starts_from_the_teacher_only_with_its_statistics() -> None:
    method: Method = replace(get_method("stfpm"), {"encoder.init": "imagenet"})
    with pytest.raises(ConfigError, match=r"encoder.init: imagenet needs weights with their BatchNorm statistics"):
        Distiller(method, "resnet18")
    teacher = distiller().teacher
    for name, buffer in teacher.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.1)
    model = Distiller(method, "resnet18", teacher).eval()
    with torch.inference_mode():
        assert model.anomaly_map(images()).max().item() == 0
