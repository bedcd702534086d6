"""What inspection costs as columns: shown, sorted, filtered by; on one device and on several."""

from dataclasses import replace
from pathlib import Path

import pytest

from dskd.config import ConfigError
from harness.leaderboard.frame import load
from harness.leaderboard.render import FORMATS
from harness.leaderboard.report import gather
from harness.leaderboard.sections import NAMES, make_sections
from harness.leaderboard.table import boards, scores
from harness.records import Record, Results
from tests.leaderboard.synthetic import write_results

METHODS = ("dskd", "stfpm", "reverse_distillation")
LATENCY = dict(zip(METHODS, (30.0, 10.0, 20.0), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A latency of each method, and of dskd one more, on another device, of 5 ms; stfpm's was disturbed."""
    results = write_results(tmp_path / "runs", METHODS, categories=("cloth",))
    for record in [one for one in results if isinstance(one, Record) and one.kind == "bench"]:
        method = record.spec["method"]["name"]
        measured = {"single_stream": {"latency_p50_ms": LATENCY[method]}, "peak_host_memory_mib": 512.5}
        if method == "stfpm":
            measured |= {"disturbed": True, "foreign_cpu_share": 0.5}
        results.publish(replace(record, result=record.result | measured), replace=True)
    return results.folder


def add_gpu(folder: Path) -> None:
    results = Results(folder)
    for record in [one for one in results if isinstance(one, Record) and one.kind == "bench"]:
        if record.spec["method"]["name"] == "dskd":
            there = {"device_type": "cuda", "single_stream": {"latency_p50_ms": 5.0}, "peak_device_memory_mib": 99.0}
            spec = record.spec | {"device": "a GPU"}
            results.publish(replace(record, id="e" * 16, spec=spec, result=record.result | there))


def shown(folder: Path, *metrics: str, sort: str = "", where: tuple[str, ...] = ()) -> list[tuple[str, dict]]:
    (board,) = boards(load([folder]), metrics=metrics, where=where)
    return [(key[0], {name: cell.value for name, cell in cells.items()}) for key, cells in scores(board, sort).rows]


def test_costs_stand_beside_metrics_and_alone(folder: Path) -> None:
    rows = dict(shown(folder, "image_auroc", "latency_p50_ms", "peak_host_memory_mib", "parameters_students"))
    for method, cells in rows.items():
        assert cells["latency_p50_ms"] == LATENCY[method]
        assert cells["peak_host_memory_mib"] == 512.5
        assert cells["parameters_students"] == 11_000_000  # of the training: no measurement has it
        assert "set.image_auroc" in cells
    alone = dict(shown(folder, "latency_p50_ms"))
    assert not [key for cells in alone.values() for key in cells if key.startswith("set.")]
    (board,) = boards(load([folder]), metrics=("latency_p50_ms", "parameters_students"))
    for form, write in FORMATS.items():
        assert "11.00 M" in write(make_sections([board])) or form in ("csv", "json")
    assert make_sections([board], NAMES)


def test_the_lowest_comes_first_and_what_was_disturbed_after_it(folder: Path) -> None:
    order = [method for method, _ in shown(folder, "image_auroc", "latency_p50_ms", sort="latency_p50_ms")]
    assert order == ["reverse_distillation", "dskd", "stfpm"]
    assert [method for method, _ in shown(folder, "image_auroc", sort="images_per_s")][-1] == "stfpm"
    with pytest.raises(ConfigError, match="--sort: unknown column 'latency_p50_ms'"):
        shown(folder, "image_auroc", sort="latency_p50_ms")


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (("latency_p50_ms<20",), {"stfpm"}),
        (("latency_p50_ms<=20",), {"stfpm", "reverse_distillation"}),
        (("latency_p50_ms>10", "latency_p50_ms<30"), {"reverse_distillation"}),
        (("images_per_s>=80",), {"stfpm", "reverse_distillation"}),
        (("parameters_students<2e7",), set(METHODS)),
        (("seed<1", "method!=dskd"), {"stfpm", "reverse_distillation"}),
        (("train.epochs>=8",), set(METHODS)),
    ],
)
def test_runs_are_chosen_by_numbers(conditions: tuple[str, ...], left: set[str], folder: Path) -> None:
    rows = shown(folder, "image_auroc", where=conditions)
    assert {method for method, _ in rows} == left


def test_of_several_devices_each_has_a_column_and_all_must_meet_a_bound(folder: Path) -> None:
    add_gpu(folder)
    rows = dict(shown(folder, "image_auroc", "latency_p50_ms", sort="latency_p50_ms"))
    assert rows["dskd"]["latency_p50_ms@a GPU"] == 5.0
    assert rows["dskd"]["latency_p50_ms@cpu, 2 threads"] == 30.0
    assert next(iter(rows)) == "dskd"  # by the first device
    assert {method for method, _ in shown(folder, "image_auroc", where=("latency_p50_ms<25",))} == {*METHODS} - {"dskd"}
    assert "dskd" not in {method for method, _ in shown(folder, "image_auroc", where=("latency_p50_ms>10",))}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("latency_p50_ms<1", "no evaluation has latency_p50_ms<1; latency_p50_ms is 10.0, 20.0, 30.0"),
        ("peak_device_memory_mib<1", "peak_device_memory_mib is not known of any"),
        ("latency_p50_ms=10", "latency_p50_ms is a number; write latency_p50_ms<10 or latency_p50_ms>10"),
        ("latency_p50_ms<fast", "'fast' is no number; write latency_p50_ms<20"),
        ("latency_p50<9", "unknown key 'latency_p50'; did you mean 'latency_p50_ms'"),
        ("image_auroc>0.9", "unknown key 'image_auroc'"),  # nobody chooses runs by their result
        ("weights<1", "no evaluation has weights<1; weights is random"),
        ("method", "write key=value, key!=value or key<number"),
    ],
)
def test_conditions_that_cannot_be_meant(conditions: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        shown(folder, "image_auroc", where=(conditions,))
    assert message in str(error.value)


def test_a_page_needs_a_metric_of_detection(folder: Path) -> None:
    made = boards(load([folder]), metrics=("latency_p50_ms",))
    with pytest.raises(ConfigError, match="--metric: a page needs a metric of detection too"):
        gather(made, made)
    both, fine = (
        boards(load([folder]), by=by, metrics=("image_auroc", "latency_p50_ms"))
        for by in (("method",), ("method", "category"))
    )
    (part,) = gather(both, fine)
    assert "latency_p50_ms" in [column.key for column in part.tables["scores"].columns]
    assert [column.key for column in part.categories["set"].columns] == ["set.image_auroc"]
