"""From a grid file to runs: axes, rules, ids, and everything that is refused before anything runs."""

import json
import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from dskd import Teacher
from dskd.config import ConfigError, from_mapping, to_mapping
from dskd.methods import get_method
from harness.environment import thread_count
from harness.grid import Facts, Plan, expand, resolve
from harness.gridfile import Grid, parse, read_grid
from harness.naming import labels_of
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights
from tests.conftest import SURFACES

DOCUMENT = {
    "name": "test",
    "axes": {
        "method": ["dskd", "stfpm", "reverse_distillation"],
        "backbone": ["resnet18"],
        "dataset": [SURFACES | {"categories": ["granite", "leather"]}],
        "seed": [0, 1, 2],
    },
    "defaults": {"weights": "random"},
}


def grid(**sections: object) -> Grid:
    return parse(yaml.safe_load(yaml.safe_dump(DOCUMENT | sections)))


def plan(**sections: object) -> Plan:
    parsed = grid(**sections)
    return expand(parsed, resolve(parsed))


def test_axes_categories_rules_and_order() -> None:
    made = plan(
        exclude=[{"method": "reverse_distillation", "seed": 2}, {"category": "leather", "method": ["dskd"]}],
        overrides=[{"when": {"method": "stfpm", "seed": [0, 1]}, "set": {"train.epochs": 100, "train": {"lr": 0.1}}}],
        include=[{"method": "dskd", "seed": 7}],
        evaluate=[{}, {"map.scale_fuse": "mul", "map.sigma": 0}],
        bench={"batch_sizes": [1, 2], "seconds": 1},
    )
    runs = [labels_of(training.spec) for training in made.trainings]
    assert len(runs) == 3 + 6 + 4 + 1  # dskd without leather, stfpm, reverse distillation without seed 2, included
    assert runs[-1]["seed"] == 7
    recipes = {(t.spec.method.name, t.spec.seed): t.spec.method.train for t in made.trainings}
    assert (recipes["stfpm", 0].epochs, recipes["stfpm", 0].lr) == (100, 0.1)
    assert (recipes["stfpm", 2].epochs, recipes["stfpm", 2].lr) == (100, 0.4)
    assert (recipes["dskd", 0].epochs, recipes["reverse_distillation", 1].batch_size) == (200, 16)
    first = made.trainings[0].evaluations
    assert [(e.map.scale_fuse, e.map.sigma) for e in first] == [("sum", 4.0), ("mul", 0.0)]
    stfpm = next(t for t in made.trainings if t.spec.method.name == "stfpm")
    assert len(stfpm.evaluations) == 1  # its default is the variant: one piece of work, not two
    assert [bench.method.name for bench in made.benches] == ["dskd", "stfpm", "reverse_distillation"]
    assert len({t.spec.id for t in made.trainings}) == len(made.trainings)


def test_recipes_of_one_architecture_are_runs_of_their_own_unless_they_are_the_same() -> None:
    axes = DOCUMENT["axes"] | {"method": ["dskd", "stfpm"], "recipe": ["own", "common"], "seed": [0]}
    made = plan(axes=axes, overrides=[{"when": {"recipe": "common"}, "set": {"evaluate.at": [190, 200]}}])
    found = [(t.spec.method.name, t.spec.method.recipe, t.spec.method.train.optimizer) for t in made.trainings]
    assert sorted(set(found)) == [("dskd", "own", "adam"), ("stfpm", "common", "adam"), ("stfpm", "own", "sgd")]
    common = next(t for t in made.trainings if t.spec.method.recipe == "common")
    assert (common.spec.evaluate_at, common.evaluations[0].map.sigma) == ((190, 200), 4.0)


def test_any_timm_backbone_and_what_decides_an_id() -> None:
    axes = DOCUMENT["axes"] | {"method": ["dskd"], "backbone": ["mobilenetv3_small_100"], "seed": [0]}
    made = plan(axes=axes, defaults={"weights": "random", "image_size": 256})
    ids = {made.trainings[0].spec.id}
    for changed in ({"crop": 224}, {"evaluate.at": [10]}, {"decoder.up": "bilinear"}, {"train.ema": 0.9}):
        ids.add(plan(axes=axes, defaults={"weights": "random"} | changed).trainings[0].spec.id)
    assert len(ids) == 5
    unchanged = {"crop": 0, "evaluate.at": [], "decoder.up": "deconv", "train.ema": 0, "recipe": "common"}
    assert plan(axes=axes, defaults={"weights": "random"} | unchanged).trainings[0].spec.id in ids


@pytest.mark.parametrize(("epochs", "meant"), [(1, [1]), (2, [1, 2]), (10, [1, 2, 4, 8, 10]), (16, [1, 2, 4, 8, 16])])
def test_epochs_spaced_logarithmically_are_the_run_of_their_list(epochs: int, meant: list[int]) -> None:
    def made(at: object) -> list[str]:
        return [
            t.spec.id for t in plan(defaults={"weights": "random", "train.epochs": epochs, "evaluate.at": at}).trainings
        ]

    assert made("log") == made(meant)


def test_epochs_spaced_logarithmically_are_those_of_each_recipe() -> None:
    axes = DOCUMENT["axes"] | {"seed": [0]}
    made = plan(axes=axes, defaults={"weights": "random", "evaluate.at": "log"}).trainings
    ends = {t.spec.method.name: (t.spec.method.train.epochs, t.spec.evaluate_at[-2:]) for t in made}
    assert ends["dskd"] == (200, (128, 200))
    assert ends["stfpm"] == (100, (64, 100))


def test_settings_from_least_to_most_specific() -> None:
    made = plan(
        axes=DOCUMENT["axes"]
        | {"method": ["dskd", {"name": "dskd", "train.lr": 0.2}], "train.epochs": [3], "seed": [0]},
        defaults={"weights": "random", "train.epochs": 9, "train.lr": 0.1, "image_size": 64},
        overrides=[{"when": {"category": "leather"}, "set": {"image_size": 96}}],
    )
    found = [
        (t.spec.data.category, t.spec.method.train.lr, t.spec.method.train.epochs, t.spec.image_size)
        for t in made.trainings
    ]
    assert found == [("granite", 0.1, 3, 64), ("leather", 0.1, 3, 96), ("granite", 0.2, 3, 64), ("leather", 0.2, 3, 96)]


def test_id_is_content() -> None:
    base = DOCUMENT["defaults"]
    ids = {
        name: [t.spec.id for t in plan(**sections).trainings]
        for name, sections in {
            "base": {},
            "name": {"name": "other", "save": {"maps": 3}, "bench": {"seconds": 1}},
            "spelled": {"defaults": base | {"image_size": 256, "train.holdout": "2e-1", "precision": "auto"}},
            "map": {"defaults": base | {"map.sigma": 2, "score": "mean"}},
            "evaluate": {"evaluate": [{"score": "mean"}]},
            "lr": {"defaults": base | {"train.lr": 0.3}},
            "size": {"defaults": base | {"image_size": 64}},
            "precision": {"defaults": base | {"precision": "bf16"}},
        }.items()
    }
    for same in ("name", "spelled", "map", "evaluate"):
        assert ids[same] == ids["base"], same
    for other in ("lr", "size", "precision"):
        assert not set(ids[other]) & set(ids["base"]), other
    evaluations = [
        plan(evaluate=[variant]).trainings[0].evaluations[0].id for variant in ({}, {"map.sigma": 1}, {"score": "std"})
    ]
    assert len(set(evaluations)) == 3


def test_specs_survive_json() -> None:
    training = plan().trainings[0]
    for spec in (training.spec, *training.evaluations):
        again = from_mapping(type(spec), yaml.safe_load(yaml.safe_dump(to_mapping(spec))))
        assert again == spec
        assert again.id == spec.id


def test_weights_decide_by_content() -> None:
    parsed = grid()
    data = Data("surfaces", "granite", "m")

    def run(weights: Weights) -> TrainSpec:
        source = next(iter(resolve(parsed).categories))
        facts = Facts({source: [data]}, {("random", "resnet18"): (weights, None)}, "cpu", thread_count())
        return expand(parsed, facts).trainings[0].spec

    assert run(Weights("a", "1" * 64)).id == run(Weights("b", "1" * 64)).id != run(Weights("a", "2" * 64)).id


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"axes": "dskd"}, "axes: 'dskd' is not possible; write a mapping"),
        ({"axis": {}}, "unknown key 'axis'; did you mean 'axes'"),
        ({"name": "a b"}, "name: 'a b' is not possible"),
        ({"axes": {"method": ["dskd"]}}, "axes: 'backbone' is missing"),
        ({"axes": DOCUMENT["axes"] | {"method": []}}, "axes: 'method' is empty"),
        ({"axes": DOCUMENT["axes"] | {"methods": ["dskd"]}}, "unknown key 'methods'; did you mean 'method'"),
        ({"axes": DOCUMENT["axes"] | {"method": ["dsdk"]}}, "unknown method 'dsdk'; did you mean 'dskd'"),
        (
            {"axes": DOCUMENT["axes"] | {"method": [{"name": "dskd", "embeding.source": "teacher"}]}},
            "'embedding.source'",
        ),
        (
            {"axes": DOCUMENT["axes"] | {"backbone": ["resnet19"]}},
            "unknown backbone 'resnet19'; did you mean 'resnet18'",
        ),
        ({"axes": DOCUMENT["axes"] | {"dataset": ["mvtec"]}}, "unknown dataset 'mvtec'; did you mean 'mvtec_ad'"),
        (
            {"axes": DOCUMENT["axes"] | {"dataset": [{"name": "mtd", "rot": "x"}]}},
            "unknown key 'dataset mtd.rot'; did you",
        ),
        ({"axes": DOCUMENT["axes"] | {"dataset": [{"root": "x"}]}}, "has no `name`"),
        (
            {"axes": DOCUMENT["axes"] | {"dataset": [SURFACES | {"categories": ["granit"]}]}},
            "did you mean 'granite'",
        ),
        ({"axes": DOCUMENT["axes"] | {"seed": ["a"]}}, "seed: 'a' is not possible; write a whole number"),
        (
            {"axes": DOCUMENT["axes"] | {"image_size": [250]}},
            "image_size: 250 is not possible, .* multiple of 32; write 256",
        ),
        ({"defaults": {"train.epoch": 1}}, "defaults: unknown key 'train.epoch'; did you mean 'train.epochs'"),
        ({"defaults": {"weights": "random", "precision": "fp16"}}, "precision: 'fp16' is not possible"),
        ({"defaults": {"weights": "random", "train.lr": date(2026, 1, 1)}}, "train.lr: 2026-01-01 is not possible"),
        ({"defaults": {"weights": "random", "layers": [date(2026, 1, 1)]}}, "a date in a list is not possible"),
        ({"defaults": {"weights": "imagnet"}}, "did you mean 'imagenet'"),
        ({"defaults": {"weights": "/gone/x.safetensors"}}, "no file /gone/x.safetensors"),
        (
            {"defaults": {"weights": "imagenet"}},
            "HF_HUB_OFFLINE is set; where there is a network run `hf download timm/resnet18",
        ),
        ({"exclude": [{"method": "stpfm"}]}, "exclude: method 'stpfm' is not in the grid; did you mean 'stfpm'"),
        ({"exclude": "stfpm"}, "exclude: 'stfpm' is not possible; write a list"),
        ({"exclude": {"method": "stpfm"}}, "exclude: method 'stpfm' is not in the grid"),
        ({"axes": DOCUMENT["axes"] | {"method": ["STFPM"]}}, "unknown method 'STFPM'; did you mean 'stfpm'"),
        (
            {"defaults": {"imagesize": 64}},
            r"unknown key 'imagesize'; did you mean 'image_size'\? \(\d+ are possible\)$",
        ),
        ({"defaults": {"weights": "$NOPE/x"}}, r"weights: \$NOPE is not set, in \$NOPE/x; set the variable or write"),
        ({"overrides": [{"if": {}}]}, "overrides: unknown key 'if'"),
        ({"overrides": [{"when": {"seed": 5}, "set": {}}]}, "overrides.when: seed 5 is not in the grid"),
        ({"overrides": [{"set": {"seed": 5}}]}, "overrides.set: unknown key 'seed'"),
        ({"evaluate": [{"train.epochs": 1}]}, "evaluate: unknown key 'train.epochs'"),
        ({"evaluate": [{"map.scale_fuse": "max"}]}, "map.scale_fuse: 'max' is not possible; .*one of: sum, mul"),
        ({"evaluate": [{"aupro_limits": [2]}]}, "aupro_limits"),
        ({"bench": {"batch_size": 1}}, "unknown key 'bench.batch_size'; did you mean 'batch_sizes'"),
        ({"bench": {"batch_sizes": [0]}}, "bench.batch_sizes: .0. is not possible"),
        ({"save": {"map": 1}}, "unknown key 'save.map'"),
        ({"defaults": {"weights": "random", "embedding.source": "teacher"}}, "there is no decoder student"),
        ({"defaults": {"recipe": "comon", "weights": "random"}}, "did you mean 'common'"),
        ({"defaults": {"evaluate.at": [1, 500], "weights": "random"}}, "write rising epochs from 1 to 200"),
        (
            {"defaults": {"evaluate.at": "often", "weights": "random"}},
            r"evaluate.at: 'often' is not possible; write log \(1, 2, 4, ... and the last\), or a list of epochs$",
        ),
        ({"defaults": {"evaluate.at": 10, "weights": "random"}}, "evaluate.at: 10 is not possible; write log "),
        ({"defaults": {"crop": 288, "weights": "random"}}, "crop: 288 is more than image_size: 256"),
        (
            {"defaults": {"crop": 96, "image_size": [64, 96], "weights": "random"}},
            r"crop: 96 is more than image_size: \[64, 96\]",
        ),
        ({"defaults": {"crop": 100, "weights": "random"}}, "crop: 100 is not possible, .* multiple of 32; write 96"),
        ({"axes": DOCUMENT["axes"] | {"backbone": ["vit_tiny_patch16_224"]}}, "strides 16, 16, 16; three that double"),
        (
            {"axes": DOCUMENT["axes"] | {"backbone": ["mobilenetv3_small_100"], "crop": [100]}},
            "crop: 100 is not possible, mobilenetv3_small_100 with a decoder needs a multiple of 32; write 96",
        ),
        (
            {"axes": DOCUMENT["axes"] | {"method": [{"name": "stfpm", "encoder.backbone": "resnet18"}]}},
            "encoder.backbone: resnet18 is the teacher's own trunk",
        ),
        (
            {"axes": DOCUMENT["axes"] | {"method": [{"name": "stfpm", "encoder.backbone": "efficientnet_b9"}]}},
            "unknown backbone 'efficientnet_b9'; did you mean 'efficientnet_b",
        ),
        (
            {"axes": DOCUMENT["axes"] | {"method": [{"name": "stfpm", "encoder.init": "imagenet"}]}},
            "encoder.init: imagenet needs weights with their BatchNorm statistics, random for resnet18 has none",
        ),
        (
            {"evaluate": [{"map.student_fuse": "error_disagreement", "map.scale_fuse": "sum"}]},
            "one student of stfpm has nobody to disagree with",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        plan(**sections)
    assert "\n" not in str(error.value)


def test_names_are_looked_up_when_a_grid_is_resolved(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    for axis in ("method", "backbone", "dataset"):
        path.write_text(yaml.safe_dump(DOCUMENT | {"axes": DOCUMENT["axes"] | {axis: ["of_a_plugin"]}}))
        parsed = read_grid(path)
        assert parsed.name == "test"
        with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: unknown {axis} 'of_a_plugin'; "):
            resolve(parsed)


def test_a_spec_looks_up_no_backbone() -> None:
    spec = TrainSpec(get_method("smaller_student"), "of_a_plugin", Weights(), Data("a", "b", "c"), image_size=100)
    assert spec.sides == (100, 100)


def test_sizes_are_sides_of_squares_or_height_and_width() -> None:
    """On an axis a list holds values, elsewhere it is one; a square by both sides is the square."""
    axes = DOCUMENT["axes"] | {"dataset": [SURFACES | {"categories": ["granite"]}], "seed": [0]}

    def sizes(more: dict | None = None, **sections: object) -> list:
        return [t.spec.image_size for t in plan(axes=axes | {"method": ["dskd"]} | (more or {}), **sections).trainings]

    assert sizes({"image_size": [64, 96]}) == [64, 96]
    assert sizes({"image_size": [64, [64, 96], [96, 64], [64, 64]]}) == [64, (64, 96), (96, 64)]
    assert sizes(defaults=DOCUMENT["defaults"] | {"image_size": [64, 96]}) == [(64, 96)]
    strip = {"when": {"image_size": "64x96"}, "set": {"image_size": [96, 64]}}
    assert sizes({"image_size": [64, [64, 96]]}, overrides=[strip]) == [64, (96, 64)]
    for rule in (["64x96"], [[64, 96]], "64x96"):
        assert sizes({"image_size": [[64, 64], [64, 96]]}, exclude=[{"image_size": rule}]) == [64]
    with pytest.raises(ConfigError, match="exclude: image_size '96x64' is not in the grid; one of: 64x96"):
        sizes({"image_size": [[64, 96]]}, exclude=[{"image_size": "96x64"}])


def test_a_strip_has_an_id_of_its_own_and_a_bench_of_its_size() -> None:
    made = plan(defaults={"weights": "random", "image_size": [64, 96]}, bench={"seconds": 1})
    training, bench = made.trainings[0].spec, made.benches[0]
    assert (training.sides, bench.image_size) == ((64, 96), (64, 96))
    turned = plan(defaults={"weights": "random", "image_size": [96, 64]}, bench={"seconds": 1})
    assert training.id != turned.trainings[0].spec.id
    assert bench.id != turned.benches[0].id
    for spec in (training, bench):
        again = from_mapping(type(spec), json.loads(json.dumps(to_mapping(spec))))
        assert (again, again.id) == (spec, spec.id)
    cropped = plan(defaults={"weights": "random", "image_size": [64, 96], "crop": 64}, bench={"seconds": 1})
    assert (cropped.trainings[0].spec.sides, cropped.benches[0].image_size) == ((64, 64), 64)


def test_weights_of_another_backbone_are_refused(imagenet_weights: Path) -> None:
    axes = DOCUMENT["axes"] | {"backbone": ["resnet34"]}
    with pytest.raises(ConfigError, match=r"lacks layer1\.2\.bn1\.bias.* a file for resnet34"):
        plan(axes=axes, defaults={"weights": str(imagenet_weights)})


def test_evaluation_defaults_to_the_methods_own_map() -> None:
    evaluation = plan(defaults={"weights": "random", "map.sigma": 1}).trainings[0].evaluations[0]
    assert isinstance(evaluation, EvaluateSpec)
    assert evaluation.map.sigma == 1


def test_a_mapping_alone_is_a_rule() -> None:
    for section, rule in (("exclude", {"method": "dskd", "seed": 0}), ("overrides", {"when": {"seed": 0}, "set": {}})):
        assert parse(DOCUMENT | {section: rule}) == parse(DOCUMENT | {section: [rule]})


def planned(**sections: object) -> dict[tuple[str, int], str]:
    """Of the plan of DOCUMENT with these sections the weights by backbone and seed."""
    grid = parse(DOCUMENT | {"axes": DOCUMENT["axes"] | {"seed": [0]}, "defaults": {"weights": "random"}} | sections)
    runs = expand(grid, resolve(grid, "cpu")).trainings
    return {(run.spec.backbone, run.spec.seed): run.spec.weights.name for run in runs}


def test_weights_go_with_a_backbone(tmp_path: Path) -> None:
    """Only those pairs are looked at that a run has: neither file holds the other's backbone."""
    names = {}
    for backbone in ("resnet18", "resnet34"):
        save_file(Teacher(backbone).trunk.state_dict(), tmp_path / f"{backbone}.safetensors")
        names[backbone] = str(tmp_path / f"{backbone}.safetensors")
    expected = {("resnet18", 0): "resnet18.safetensors", ("resnet34", 0): "resnet34.safetensors"}
    axes = DOCUMENT["axes"] | {"seed": [0]}
    entries = [{"name": name, "weights": path} for name, path in names.items()]
    rules = [{"when": {"backbone": name}, "set": {"weights": path}} for name, path in names.items()]
    each = {"backbone": list(names), "weights": list(names.values())}
    others = [
        {"backbone": "resnet18", "weights": names["resnet34"]},
        {"backbone": "resnet34", "weights": names["resnet18"]},
    ]
    for sections in (
        {"axes": axes | {"backbone": entries}},
        {"axes": axes | {"backbone": list(names)}, "overrides": rules},
        {"axes": axes | {"backbone": entries[:1]}, "include": [{"backbone": "resnet34", "weights": names["resnet34"]}]},
        {"axes": axes | each, "exclude": others},
    ):
        assert planned(**sections) == expected
    assert planned(axes=axes | {"backbone": [entries[0], "resnet34"]}) == expected | {("resnet34", 0): "random"}
    with pytest.raises(ConfigError, match="a file for resnet34 in timm's names is needed"):
        planned(axes=axes | each)


def test_a_backbones_settings_come_between_defaults_and_axes() -> None:
    entry = {"name": "resnet18", "image_size": 64, "train": {"epochs": 3}}
    for own, size in ({}, 64), ({"image_size": [128]}, 128):
        grid = parse(
            DOCUMENT | {"axes": DOCUMENT["axes"] | {"backbone": [entry]} | own, "defaults": {"weights": "random"}}
        )
        (spec, *_) = [run.spec for run in expand(grid, resolve(grid, "cpu")).trainings]
        assert (spec.image_size, spec.method.train.epochs) == (size, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weights": "random"}, "backbone: {'weights': 'random'} has no `name`"),
        ({"name": "resnet19"}, "unknown backbone 'resnet19'; did you mean 'resnet18'"),
        ({"name": ["resnet18"]}, "backbone: the name ['resnet18'] is not possible; write a text"),
        ({"name": "resnet18", "weight": "random"}, "backbone resnet18: unknown key 'weight'; did you mean 'weights'"),
        ({"name": "resnet18", "seed": 1}, "backbone resnet18: unknown key 'seed'"),
        (5, "backbone: 5 is not possible; write a name such as resnet18"),
    ],
)
def test_backbones_that_are_none(entry: object, message: str) -> None:
    grid = parse(DOCUMENT | {"axes": DOCUMENT["axes"] | {"backbone": [entry]}})
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(grid, "cpu")
