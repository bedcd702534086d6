"""A throughput that others disturbed is shown, with what disturbed it, and wins nothing anywhere."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.common import console
from harness.disturbance import disturbance, disturbed_less
from harness.leaderboard import inventory, plots
from harness.leaderboard.compare import compare, read_side
from harness.leaderboard.frame import load
from harness.leaderboard.render import FORMATS, print_sections
from harness.leaderboard.report import gather
from harness.leaderboard.sections import make_sections
from harness.leaderboard.table import boards, scores
from harness.records import Record, RecordError, Results, parse_record
from tests.leaderboard.synthetic import write_results

WHY = "others used 74 % of the CPU"
BUSY = {"disturbed": True, "foreign_cpu_share": 0.74}
FAST, SLOW = "reverse_distillation", "dskd"  # 110 and 50 images/s


def disturb(results: Results, *methods: str, **changes: object) -> None:
    """The benches of these methods as others at work would have left them."""
    for record in list(results):
        if isinstance(record, Record) and record.kind == "bench" and record.spec["method"]["name"] in methods:
            results.publish(replace(record, result=record.result | BUSY | changes), replace=True)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = write_results(tmp_path / "runs", categories=("cloth",))
    disturb(made, FAST)
    return made


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"images_per_s": 1.0}, ""),  # of a commit that did not watch
        ({"disturbed": False, "foreign_cpu_share": 0.02}, ""),
        (BUSY, WHY),
        ({"disturbed": True, "foreign_gpu_processes": 1}, "another process was on the GPU"),
        (
            BUSY | {"foreign_gpu_processes": 3, "gpu_after": {"throttled": ["heat"]}, "gpu_before": {"throttled": []}},
            f"{WHY}, 3 others were on the GPU, the GPU was slowed down (heat)",
        ),
        ({"disturbed": True}, "something disturbed it"),
    ],
)
def test_what_disturbed_it_in_a_word(result: dict, said: str) -> None:
    assert disturbance(result) == said


def test_the_quieter_one() -> None:
    calm, restless = {"disturbed": False, "foreign_cpu_share": 0.04}, BUSY | {"foreign_cpu_share": 0.06}
    order = [calm, restless, BUSY, {"disturbed": True, "foreign_gpu_processes": 1}]
    for place, one in enumerate(order):
        assert [disturbed_less(one, other) for other in order] == [place < other for other in range(len(order))]


def test_a_table_shows_it_without_bold_bar_or_medal(results: Results) -> None:
    (board,) = boards(load([results.folder]))
    terminal = console()
    terminal.width = 120
    with terminal.capture() as captured:
        print_sections(terminal, make_sections([board]))
    lines = {
        line.split()[1 if "🥇" in line or "🥈" in line or "🥉" in line else 0]: line
        for line in captured.get().splitlines()
        if "resnet18" in line
    }
    assert lines[FAST].rstrip().endswith("110 ⚠")
    assert "█" in lines[SLOW]
    assert "80.0 ████████" in lines["stfpm"]
    assert f"⚠: disturbed ({WHY}), so no measurement of the model" in captured.get()
    sections = make_sections([board])
    assert "| 110 ⚠ |" in FORMATS["markdown"](sections)
    assert "**80.0** |" in FORMATS["markdown"](sections)
    assert r"110 $\triangle$" in FORMATS["latex"](sections)
    (table,) = json.loads(FORMATS["json"](sections))["sections"][0]["tables"]
    speeds = {row["method"]: row["cells"]["images_per_s"] for row in table["rows"]}
    assert speeds[FAST] == {"value": 110.0, "disturbed": WHY}
    assert speeds[SLOW] == {"value": 50.0, "disturbed": None}
    assert f",110.0,{WHY}\n" in FORMATS["csv"](sections)


def test_the_report_calls_nothing_fastest_that_was_disturbed(results: Results) -> None:
    def made() -> tuple:
        lines, fine = (boards(load([results.folder]), by=by) for by in (("method",), ("method", "category")))
        (part,) = gather(lines, fine)
        return part, part.cards[-1]

    part, card = made()
    assert (card.title, card.figure) == ("Fastest on cpu, 2 threads", "stfpm")
    assert card.lines[-1] == f"110.0 ⚠ images/s: {FAST}; {WHY}"
    assert [column.key for column in part.tables["speed"].columns][:2] == ["images_per_s", "disturbed"]
    assert part.tables["speed"].rows[-1][0][0] == FAST
    disturb(results, "stfpm", SLOW)
    _, card = made()
    assert (card.title, card.figure) == ("Speed on cpu, 2 threads", "undecided: every measurement was disturbed")
    (chart,) = [one for one in part.figures if one.kind == "scatter" and one.metric == "image_auroc"]
    assert "Pareto front" in json.dumps(chart.chart.to_dict())


def test_the_pareto_front_is_of_undisturbed_ones() -> None:
    columns = ["name", "device", "speed", "disturbed", "value", "low", "high"]
    points = pd.DataFrame(
        [
            ["slow", "d", 1.0, "", 0.9, 0.8, 1.0],
            ["quick", "d", 2.0, "", 0.8, 0.7, 0.9],
            ["busy", "d", 9.0, WHY, 0.95, 0.9, 1],
        ],
        columns=columns,
    )
    said = plots.scatter(points, "image AUROC", ["slow", "quick", "busy"]).to_dict()["description"]
    assert said.endswith("On the Pareto front: slow, quick.")
    points["disturbed"] = WHY
    said = plots.scatter(points, "image AUROC", ["slow", "quick", "busy"]).to_dict()["description"]
    assert said.endswith("On the Pareto front: none, as every speed was disturbed.")


def test_a_comparison_marks_it_on_both_sides(results: Results) -> None:
    side = read_side(str(results.folder))
    section, _ = compare(side, side)
    (table,) = [table for table in section.tables if table.name == "speed"]
    cells = {key[1]: cells for key, cells in table.rows}
    assert {cell.disturbed for cell in cells[FAST].values()} == {WHY}
    assert {cell.disturbed for cell in cells[SLOW].values()} == {None}
    assert any(WHY in note for note in table.notes)


def test_a_disturbed_one_takes_no_undisturbed_ones_place(results: Results, tmp_path: Path) -> None:
    later = write_results(tmp_path / "later", categories=("cloth",))
    for place, record in enumerate(list(later)):
        if isinstance(record, Record) and record.kind == "bench":
            again = replace(record, started_at="2026-02-02T00:00:00+00:00")
            later.publish(replace(again, id=f"{place:016x}", result=record.result | BUSY | {"images_per_s": 999.0}))
    (board,) = boards(load([results.folder, later.folder]))
    values = {key[0]: cells["images_per_s"] for key, cells in scores(board).rows}
    assert (values[SLOW].value, values[SLOW].disturbed) == (50.0, None)
    assert len(inventory.speed(board).rows) == 6  # the page's table of measurements has them all


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"foreign_cpu_share": "much"}, "foreign_cpu_share"), ({"gpu_before": {"throttled": 1}}, "gpu_before.throttled")],
)
def test_records_that_say_it_in_another_way_are_damaged(changes: dict, message: str, results: Results) -> None:
    record = next(one for one in results if isinstance(one, Record) and one.kind == "bench")
    document = json.loads(results.run_folder(record.id).record.read_text())
    document["result"] |= changes
    with pytest.raises(RecordError, match=message):
        parse_record(json.dumps(document))
