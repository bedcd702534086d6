"""`harness best`: which model is taken under limits, and why each other one is not."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.records import Record, Results
from tests.faults.commands import harness, refusal
from tests.leaderboard.synthetic import write_results

# dskd and stfpm are not told apart over seeds, reverse_distillation is behind.
PIXEL_AUROC = {
    "dskd": (0.950, 0.951, 0.952),
    "stfpm": (0.951, 0.950, 0.9515),
    "reverse_distillation": (0.800, 0.801, 0.802),
}
GAP = "; 0.0 [-0.2, 0.3] points behind dskd"
LATENCY = {"dskd": 30.0, "stfpm": 10.0, "reverse_distillation": 20.0}


def edit(folder: Path, kind: str, change: Callable[[Record], dict[str, Any] | None]) -> None:
    """Replace what each record of the kind holds, in part; None leaves it as it is."""
    results = Results(folder)
    for record in [one for one in results if isinstance(one, Record) and one.kind == kind]:
        if changed := change(record):
            results.publish(replace(record, result=record.result | changed), replace=True)


def of_method(method: str, **changed: Any) -> Callable[[Record], dict[str, Any] | None]:
    return lambda record: changed if record.spec["method"]["name"] == method else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = write_results(tmp_path / "runs", tuple(PIXEL_AUROC), categories=("cloth",)).folder

    def score(record: Record) -> dict[str, Any]:
        train = record.spec["train"]
        return {"pixel_auroc": PIXEL_AUROC[train["method"]["name"]][train["seed"]], "degenerate": False}

    def cost(record: Record) -> dict[str, Any]:
        middle = LATENCY[record.spec["method"]["name"]]
        return {"single_stream": {"latency_p50_ms": middle, "latency_p95_ms": middle + 4}, "gmac": middle / 10}

    edit(path, "evaluate", score)
    edit(path, "bench", cost)
    return path


def best(folder: Path, *arguments: str, code: int = 0) -> tuple[str, dict[str, tuple[str, str]]]:
    """The verdict's first line, and of each method how it stands and why."""
    done = harness("best", folder, "--metric", "pixel_auroc", "--format", "json", *arguments)
    assert (done.code, done.err) == (code, "")
    (section,) = json.loads(done.out)["sections"]
    (table,) = section["tables"]
    rows = {row["method"]: (row["cells"]["standing"]["value"], row["cells"]["why"]["value"]) for row in table["rows"]}
    chosen = [method for method, (standing, _) in rows.items() if standing == "chosen"]
    assert (section["chosen"] or "").split()[:1] == chosen == list(rows)[: len(chosen)]
    return section["verdict"]["lines"][0], rows


def test_the_cheapest_of_those_that_are_not_told_apart_is_taken(folder: Path) -> None:
    line, rows = best(folder)
    assert line == "Take stfpm: of 2 that are not told apart it is the cheapest: latency_p50_ms 10."
    assert rows == {
        "stfpm": ("chosen", f"cheapest: latency_p50_ms 10{GAP}"),
        "dskd": ("not told apart", "dearer: latency_p50_ms 30"),
        "reverse_distillation": ("beaten", "15.0 [15.0, 15.0] points behind dskd"),
    }


def test_what_does_not_keep_a_limit_takes_no_part(folder: Path) -> None:
    line, rows = best(folder, "--max", "latency_p95_ms=30", "--max", "gmac=2", "--min", "images_per_s=60")
    assert line == "Take stfpm: it leads beyond noise within latency_p95_ms ≤ 30, gmac ≤ 2, images_per_s ≥ 60."
    assert rows["dskd"] == ("out", "latency_p95_ms 34 > 30; gmac 3 > 2; images_per_s 50 < 60")
    assert rows["reverse_distillation"] == ("beaten", "15.0 [14.7, 15.2] points behind stfpm")
    line, rows = best(folder, "--min", "gmac=3")
    assert line == "Take dskd: it is the only one within gmac ≥ 3."
    assert rows["dskd"] == ("chosen", "the only one")
    line, rows = best(folder, "--max", "latency_p95_ms=13.99999", code=1)
    assert line == "No model is within latency_p95_ms ≤ 14."
    assert rows["stfpm"] == ("out", "latency_p95_ms 14.0 > 13.99999")


def test_what_was_not_measured_keeps_no_limit(folder: Path) -> None:
    results = Results(folder)
    (bench,) = (one for one in results if one.kind == "bench" and one.spec["method"]["name"] == "stfpm")
    results.run_folder(bench.id).record.unlink()
    _, rows = best(folder, "--max", "latency_p95_ms=40")
    assert rows["stfpm"] == ("out", "latency_p95_ms not measured: run bench")
    _, rows = best(folder)
    assert rows["dskd"] == ("chosen", "cheapest: latency_p50_ms 30")
    assert rows["stfpm"] == ("not told apart", f"latency_p50_ms not measured: run bench{GAP}")
    _, rows = best(folder, "--min", "aupimo=.5", "--max", "peak_device_mb=500", code=1)
    said = "peak_device_memory_mib is not known on this device; aupimo has no value in its records"
    assert rows["dskd"] == ("out", said)


def test_a_disturbed_latency_keeps_a_limit_and_is_never_the_cheapest(folder: Path) -> None:
    edit(folder, "bench", of_method("stfpm", disturbed=True, foreign_cpu_share=0.5))
    _, rows = best(folder, "--max", "latency_p50_ms=30")
    assert rows["dskd"] == ("chosen", "cheapest: latency_p50_ms 30")
    assert rows["stfpm"] == ("not told apart", f"latency_p50_ms disturbed: measure it again{GAP}")
    _, rows = best(folder, "--max", "latency_p50_ms=9", code=1)
    assert rows["stfpm"] == ("out", "latency_p50_ms 10 > 9, disturbed: measure it again")


def test_without_latencies_the_fewest_gmac_are_the_cheapest_and_without_these_nothing_is(folder: Path) -> None:
    edit(folder, "bench", lambda record: {"single_stream": {}})
    assert best(folder)[1]["stfpm"] == ("chosen", f"cheapest: gmac 1{GAP}")
    edit(folder, "bench", lambda record: {"gmac": None})
    line, _ = best(folder)
    assert line == "Take any of 2 that are not told apart, such as dskd: which is cheapest is not measured: run bench."


def test_runs_that_are_missing_or_collapsed_are_not_taken(folder: Path) -> None:
    results = Results(folder)
    lost = next(one for one in results if one.kind == "evaluate" and one.spec["train"]["method"]["name"] == "stfpm")
    results.run_folder(lost.id).record.unlink()
    line, rows = best(folder)
    assert line == "Take dskd: it leads beyond noise."
    assert rows["stfpm"] == ("out", "runs are missing")
    edit(folder, "evaluate", lambda record: {"degenerate": True})
    line, rows = best(folder, code=1)
    assert line == "Nothing can be said on set: all 8 runs collapsed."
    assert set(rows.values()) == {("out", "all runs collapsed")}


def test_of_several_devices_one_has_to_be_named(folder: Path) -> None:
    results = Results(folder)
    for bench in [one for one in results if one.kind == "bench"]:
        there = {"device_type": "cuda", "single_stream": {"latency_p50_ms": 40 - LATENCY[bench.spec["method"]["name"]]}}
        spec = bench.spec | {"device": "NVIDIA H100"}
        results.publish(replace(bench, id=bench.id[:-1] + "-", spec=spec, result=bench.result | there))
    error = refusal("best", folder)
    assert "--device: throughput was measured on several devices; write one of 'NVIDIA H100', 'cpu, 2 threads'" in error
    assert "--device: 'h10x' names no device; one of: NVIDIA H100, cpu" in refusal("best", folder, "--device", "h10x")
    assert best(folder, "--device", "cpu")[1]["stfpm"][0] == "chosen"
    assert best(folder, "--device", "h100")[1]["dskd"] == ("chosen", "cheapest: latency_p50_ms 10")


def test_each_data_set_has_its_own_answer_and_protocols_do_not_mix(folder: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "other", ("dskd", "stfpm"), categories=("cloth",), image_size=128).folder
    assert "mixed protocols: image_size is 128 and 64" in refusal("best", folder, other)
    done = harness("best", folder, other, "--allow-mixed", "--metric", "pixel_auroc", "--format", "csv")
    protocols = {row["protocol"] for row in csv.DictReader(io.StringIO(done.out))}
    assert (done.code, protocols) == (0, {"image_size 64", "image_size 128"})
    for record in [one for one in Results(other) if isinstance(one, Record) and one.kind == "evaluate"]:
        train = record.spec["train"] | {"data": record.spec["train"]["data"] | {"name": "goods"}, "image_size": 64}
        Results(other).publish(replace(record, spec=record.spec | {"train": train}), replace=True)
    said = harness("best", folder, other, "--metric", "pixel_auroc", "--format", "markdown").out
    assert "## goods\n" in said
    assert "## set\n" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max", "latency_p95=20"], "--max: unknown key 'latency_p95'; did you mean 'latency_p95_ms'"),
        (["--min", "throughput=20"], "--min: unknown key 'throughput'; one of: "),
        (["--max", "latency_p95_ms"], "--max: 'latency_p95_ms' is not possible; write KEY=NUMBER"),
        (["--max", "latency_p95_ms=fast"], "--max: latency_p95_ms=fast: 'fast' is no number; write latency_p95_ms=20"),
        (["--max", "gmac=nan"], "'nan' is no number"),
        (["--min", "image_ap=90"], "image_ap is a share from 0 to 1; write image_ap=0.9"),
        (["--metric", "gmac"], "--metric: gmac is a cost"),
        (["--metric", "image_aurok"], "--metric: unknown metric 'image_aurok'; did you mean 'image_auroc'"),
        (["--by", "method,seed"], "--by: a seed or a category is no model"),
        (["--device", "cpu", "--where", "method=none"], "--where: no evaluation has method=none"),
        (["--format", "html"], "--format: 'html' is not possible"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], message: str, folder: Path) -> None:
    assert message in refusal("best", folder, *arguments)


def test_the_table_for_people(folder: Path) -> None:
    said = harness("best", folder, "--metric", "pixel_auroc", "--max", "latency_p95_ms=30", "--format", "markdown").out
    table, verdict = said.split("\n\n")[:2]
    assert table == (
        "| method | backbone | set pixel AUROC | images/s | latency p95 \\[ms] | GMAC | standing | why |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |\n"
        "| stfpm | resnet18 | **95.1 ± 0.2** | 80.0 | 14.00 | 1.00 | chosen | leads beyond noise |\n"
        "| reverse_distillation | resnet18 | 80.1 ± 0.2 | **110** | 24.00 | 2.00 | beaten | "
        "15.0 [14.7, 15.2] points behind stfpm |\n"
        "| dskd | resnet18 | **95.1 ± 0.2** | 50.0 | 34.00 | 3.00 | out | latency_p95_ms 34 > 30 |"
    )
    assert verdict.startswith("Take stfpm: it leads beyond noise within latency_p95_ms ≤ 30.  \n")
