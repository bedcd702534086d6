"""The comparison table: means, intervals, holes, settings that make rows, protocols, and each format's golden file."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from dskd.config import ConfigError, replace, to_mapping
from dskd.methods import get_method
from harness.leaderboard.frame import load
from harness.leaderboard.render import FORMATS, print_sections, remarks
from harness.leaderboard.sections import NAMES, make_sections
from harness.leaderboard.table import boards, protocol_line, scores
from harness.records import Failure, Record, Results
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights, digest

GOLDEN = Path(__file__).parent / "golden"


def evaluation(
    method: str,
    category: str,
    seed: int,
    image_auroc: float | None,
    values: dict | None = None,
    precision: str = "fp32",
    dataset: str = "set",
    manifest: str = "m",
    commit: str = "0123456789ab",
    backbone: str = "resnet18",
    weights: Weights = Weights("random"),  # noqa: B008 - frozen
) -> Record:
    config = replace(get_method(method), values or {})
    data = Data(dataset, category, manifest, (("resize", "square"),))
    train = TrainSpec(config, backbone, weights, data, seed, 64)
    spec = EvaluateSpec(train, config.map, config.score)
    metrics = {"image_auroc": image_auroc, "pixel_auroc": 0.9, "aupro_0.30": 0.5 if method == "dskd" else 0.25}
    metrics |= {"degenerate": image_auroc is not None and image_auroc <= 0.5, "precision": precision}
    metrics |= {"device": "a processor", "threads": 2}
    environment = {"packages": {"torch": "2.13.0", "dskd-harness": "0.1.0"}, "commit": commit}
    return Record(
        "evaluate", spec.id, to_mapping(spec), metrics, environment, f"2026-01-0{1 + seed}T00:00:00+00:00", 1.0
    )


def bench(method: str, speed: float, device: str = "cpu") -> Record:
    spec = BenchSpec(get_method(method), "resnet18", 64, "auto", device, 2)
    result = {"images_per_s": speed, "precision": "fp32"}
    return Record("bench", spec.id, to_mapping(spec), result, {}, "2026-01-01T00:00:00+00:00", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods on two categories and three seeds; one run of stfpm is missing, one collapsed, one failed."""
    results = Results(tmp_path / "runs" / "grid")
    for seed, (a, b) in enumerate([(0.80, 0.90), (0.84, 0.94), (0.82, 0.95)]):
        results.publish(evaluation("dskd", "a", seed, a))
        results.publish(evaluation("dskd", "b", seed, b))
    for category, seed, value in (("a", 0, 0.70), ("b", 0, 0.5), ("a", 1, 0.60), ("b", 1, 0.80), ("a", 2, 0.65)):
        results.publish(evaluation("stfpm", category, seed, value))
    results.publish(bench("dskd", 123.4))
    results.publish(bench("stfpm", 45.67))
    spec = TrainSpec(get_method("stfpm"), "resnet18", Weights("random"), Data("set", "b", "m"), 2, 64)
    results.fail(Failure("train", spec.id, to_mapping(spec), "diverged", "lost", "", "2026-01-01T00:00:00+00:00", {}))
    (results.folder / "grid.yaml").write_text("name: grid\n")
    return results.folder


def table_of(folder: Path, **options):
    (board,) = boards(load([folder]), **options)
    return scores(board)


def test_mean_over_categories_and_interval_over_whole_seeds(folder: Path) -> None:
    table = table_of(folder)
    rows = {key[0]: cells for key, cells in table.rows}
    assert list(rows) == ["dskd", "stfpm"]  # best first
    dskd, stfpm = rows["dskd"]["set.image_auroc"], rows["stfpm"]["set.image_auroc"]
    assert dskd.value == pytest.approx((0.82 + 0.93) / 2)
    assert dskd.sd == pytest.approx(0.000475**0.5)  # of 0.85, 0.89, 0.885, by hand
    assert dskd.high - dskd.value == pytest.approx(4.302653 * dskd.sd / 3**0.5)  # t of 2 degrees of freedom
    assert (dskd.runs, dskd.expected, dskd.degenerate, dskd.without_degenerate) == (6, 6, 0, None)
    assert stfpm.value == pytest.approx((0.65 + 0.65) / 2)
    assert stfpm.sd == pytest.approx(0.0707106781)  # of 0.60 and 0.70: seed 2 lacks a category
    assert (stfpm.runs, stfpm.expected, stfpm.degenerate) == (5, 6, 1)
    assert stfpm.without_degenerate == pytest.approx((0.65 + 0.80) / 2)
    assert rows["dskd"]["images_per_s"].value == 123.4
    assert "k of n" in table.notes[0]
    assert "collapsed" in table.notes[1]


def test_settings_that_differ_make_rows_and_are_named(folder: Path) -> None:
    results = Results(folder)
    results.publish(evaluation("dskd", "a", 0, 0.99, {"map.sigma": 0, "train.epochs": 5}))
    results.publish(evaluation("dskd", "a", 0, 0.98, {"train.lr": 0.1}))
    table = table_of(folder)
    variants = {key[2]: cells for key, cells in table.rows if key[0] == "dskd"}
    assert set(variants) == {"", "train.epochs=5 map.sigma=0", "train.lr=0.1"}
    assert variants["train.lr=0.1"]["set.image_auroc"].expected == 6
    assert table.rows[0][0] == ("dskd", "resnet18", "train.epochs=5 map.sigma=0")
    # It is the highest only because the harder runs are missing.
    assert "**" not in next(line for line in text(folder, "markdown").splitlines() if "sigma=0" in line)


def text(folder: Path, form: str, names: tuple[str, ...] = ("scores",), **options) -> str:
    return FORMATS[form](make_sections(boards(load([folder]), **options), names))


def test_mixed_protocols_are_refused_or_split(folder: Path) -> None:
    results = Results(folder)
    results.publish(evaluation("dskd", "a", 3, 0.98, precision="bf16"))
    results.publish(evaluation("dskd", "a", 0, 0.7, dataset="other"))  # one protocol of its own
    with pytest.raises(ConfigError, match="precision is bf16 and fp32; write --where precision=bf16, --by method,back"):
        boards(load([folder]))
    half, full = boards(load([folder]), allow_mixed=True)
    assert (half.protocol, full.protocol) == ("precision bf16", "precision fp32")
    assert [len(half.lines), len(full.lines)] == [1, 12]
    (named,) = boards(load([folder]), by=["method", "precision"])
    assert len(named.parts()) == 3
    results.publish(evaluation("dskd", "a", 0, 0.6, manifest="other images"))
    with pytest.raises(ConfigError, match="tested on different images"):
        boards(load([folder]), where=["precision=fp32"])
    rows = list(csv.DictReader(io.StringIO(text(folder, "csv", allow_mixed=True))))
    assert sorted({row["protocol"] for row in rows}) == [
        "precision bf16 · images 1",
        "precision fp32 · images 1",
        "precision fp32 · images 2",
    ]


def test_trainings_by_earlier_steps_on_a_gpu_are_a_protocol_of_their_own(folder: Path) -> None:
    results, ids = Results(folder), set()
    for category, facts in (("a", {"device_type": "cuda"}), ("b", {"device_type": "cuda", "step": 2})):
        record = evaluation("reverse_distillation", category, 0, 0.9)
        spec, about = record.spec["train"], (record.environment, record.started_at, 1.0)
        training = Record("train", digest(spec), spec, facts, *about)
        for each in (record, training):
            results.publish(each)
            ids |= {each.id} if category == "b" else set()
    with pytest.raises(ConfigError, match="mixed protocols: step is 1 and 2; write --where step=1"):
        boards(load([folder]))
    earlier, now = boards(load([folder]), allow_mixed=True)
    assert (earlier.protocol, now.protocol) == ("step 1", "step 2")
    assert earlier.lines[["method", "category"]].to_numpy().tolist() == [["reverse_distillation", "a"]]
    assert len(now.lines) == 12  # those on a CPU too
    (board,) = boards(load([folder]), where=["step=1"])
    assert protocol_line(board).startswith("image_size 64 · weights random · precision fp32 · step 1 ·")
    (board,) = boards(load([folder], ids))
    assert "step" not in protocol_line(board)


def test_each_backbone_has_weights_of_its_own(folder: Path) -> None:
    results = Results(folder)
    results.publish(evaluation("dskd", "a", 0, 0.9, backbone="resnet50", weights=Weights("imagenet", "ab" * 32)))
    (board,) = boards(load([folder]))
    assert "weights resnet18: random, resnet50: imagenet (abababab) ·" in protocol_line(board)
    results.publish(evaluation("dskd", "a", 1, 0.9, backbone="resnet50"))
    with pytest.raises(ConfigError, match=r"mixed protocols: weights is imagenet \(abababab\) and random"):
        boards(load([folder]))


def test_by_where_metric_and_sort(folder: Path) -> None:
    table = table_of(folder, by=["method", "category"])
    found = {key: cells["set.image_auroc"] for key, cells in table.rows}
    assert found["dskd", "b"].value == pytest.approx(0.93)
    assert (found["stfpm", "b"].runs, found["stfpm", "b"].expected) == (2, 3)
    by_seed = table_of(folder, by=["method", "seed"])
    assert {key: cells["set.image_auroc"].sd for key, cells in by_seed.rows}["dskd", "0"] is None
    chosen = table_of(folder, where=["method=dskd", "method=stfpm", "category!=b", "degenerate=False"])
    assert [cells["set.image_auroc"].expected for _, cells in chosen.rows] == [3, 3]
    assert table_of(folder, metrics=["aupro_0.30"]).columns[0].key == "set.aupro_0.30"
    (board,) = boards(load([folder]))
    for sort in ("images_per_s", "image_auroc", "set.aupro_0.30", "backbone"):
        assert scores(board, sort).rows[0][0] == ("dskd", "resnet18")
    assert scores(board, "method").rows[1][0] == ("stfpm", "resnet18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["metod"]}, "--by: unknown key 'metod'; did you mean 'method'"),
        ({"metrics": ["image_auc"]}, "--metric: unknown metric 'image_auc'; did you mean 'image_auroc'"),
        ({"metrics": ["aupimo"]}, "--metric: no evaluation here has aupimo; "),  # those of earlier versions
        ({"metrics": []}, "--metric: write one or more of image_auroc"),
        ({"where": ["method"]}, "--where: 'method' is not possible; write key=value"),
        ({"where": ["metod=dskd"]}, "--where: unknown key 'metod'; did you mean 'method'"),
        ({"where": ["method=dkd"]}, "--where: no evaluation has method=dkd; method is dskd, stfpm"),
    ],
)
def test_what_cannot_be_meant(options: dict, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        boards(load([folder]), **options)


def test_an_unknown_column_to_sort_by(folder: Path) -> None:
    (board,) = boards(load([folder]))
    with pytest.raises(ConfigError, match="--sort: unknown column 'image_auc'"):
        scores(board, "image_auc")


def test_a_metric_that_is_undefined_is_a_hole_not_a_zero(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.publish(evaluation("dskd", "a", 0, None))
    results.publish(evaluation("dskd", "b", 0, 0.75))
    cell = table_of(tmp_path).rows[0][1]["set.image_auroc"]
    assert (cell.value, cell.runs, cell.expected) == (0.75, 1, 2)


def test_several_devices_stand_side_by_side(folder: Path) -> None:
    Results(folder).publish(bench("dskd", 999.0, device="another"))
    table = table_of(folder)
    assert [column.key for column in table.columns[3:]] == [
        "images_per_s@another, 2 threads",
        "images_per_s@cpu, 2 threads",
    ]
    assert [len(cells) for _, cells in table.rows] == [5, 4]


def test_selection(folder: Path, tmp_path: Path) -> None:
    assert len(load([folder.parent]).evaluations) == 11  # a folder of results folders
    assert len(load([folder, folder]).evaluations) == 11  # each run once
    assert [failure.reason for failure in load([folder]).failures] == ["diverged"]
    for name, content in (("torn", "{"), ("newer", '{"schema": 99}')):
        (folder / name).mkdir()
        (folder / name / "record.json").write_text(content)
    found = load([folder])
    assert [damaged.folder.name for damaged in found.damaged] == ["newer", "torn"]
    newer, _, count = remarks(found)
    assert "schema 99 is newer than this harness reads" in newer
    assert count.startswith("2 damaged records skipped")
    with pytest.raises(ConfigError, match="is not a folder"):
        load([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no finished evaluation to show"):
        boards(load([tmp_path / "empty"]))


def golden(name: str, found: str) -> None:
    """`UPDATE_GOLDEN=1 pytest tests/leaderboard` writes the file anew, for a reviewer to read the change."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str, folder: Path) -> None:
    found = text(folder, form)
    golden(f"table.{form}", found)
    if form == "json":
        assert json.loads(found)["sections"][0]["tables"][0]["rows"][0]["method"] == "dskd"


def test_all_tables_in_one_text(folder: Path) -> None:
    golden("all.markdown", text(folder, "markdown", NAMES))
    with pytest.raises(ConfigError, match="csv holds one table; write --table with one name"):
        text(folder, "csv", NAMES)


@pytest.mark.parametrize("width", [80, 160])
def test_terminal(width: int, folder: Path) -> None:
    """No line is wider than the terminal, and at 80 columns no value is lost: columns go on in another block."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_sections(console, make_sections(boards(load([folder])), ("scores",)))
    found = console.file.getvalue()
    assert max(map(len, found.splitlines())) <= width
    for value in ("87.5 ± 5.4", "65.0 [1.5, 100.0] [5/6] †1 (72.5)", "25.0 ± 0.0", "123 ████████", "45.7 ███"):
        assert value in found
    golden(f"terminal-{width}.txt", "".join(f"{line.rstrip()}\n" for line in found.splitlines()))
