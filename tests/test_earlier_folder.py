"""A results folder that an earlier commit left is read, reported and gone on with."""

import shutil
from pathlib import Path

import pytest

from harness.data import images, surfaces
from harness.data.catalog import get_source
from harness.data.manifest import describe
from harness.records import Record, Results
from tests.faults.commands import harness, refusal

FIXTURES = Path(__file__).parent / "fixtures"
MADE_BY = "eb3b756"  # a grid of three seeds, of which the last was interrupted; its checkpoint (30 MB) is left out
INTERRUPTED = "bb5dd91d42bb19f1"


@pytest.fixture(autouse=True)
def revision_of_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's ids of that grid as they were: the built-in data had another revision. Of its categories only the one of
    that grid is drawn.
    """
    monkeypatch.setattr(surfaces, "REVISION", 1)
    monkeypatch.setattr(surfaces, "CATEGORIES", {"granite": surfaces.CATEGORIES["granite"]})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(folder: Path) -> dict[str, Record]:
    """Of trainings and evaluations: a measurement of throughput is of no images."""
    return {item.id: item for item in Results(folder) if isinstance(item, Record) and item.kind != "bench"}


def test_tables_are_those_that_the_commit_printed() -> None:
    done = harness("leaderboard", FIXTURES / f"runs-{MADE_BY}", "--table", "all", "--format", "markdown")
    assert done.out == (FIXTURES / f"runs-{MADE_BY}.markdown").read_text()
    assert done.code == 0


def test_runs_are_shown_with_all_that_lies_beside_their_records(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(FIXTURES / f"runs-{MADE_BY}", folder)
    shown = harness("show", INTERRUPTED, "--out", tmp_path / "runs")
    assert f"train {INTERRUPTED}: failed (interrupted, attempt 1)" in shown.out
    assert "metrics along the training" in harness("show", "5df33a2b2a058d17", "--out", tmp_path / "runs").out
    status = harness("status", folder)
    assert "3 runs (2 done, 1 to do)" in status.out
    page = tmp_path / "page.html"
    report = harness("report", folder, "--out", page)
    assert report.code == 0, report
    assert "skipped" not in report.out + report.err
    assert page.read_text().count("<figure") > 1


def test_the_next_calls_bring_it_over_and_do_what_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(FIXTURES / f"runs-{MADE_BY}", folder)
    before, results = records(folder), Results(folder)
    assert results.survey().failed == {INTERRUPTED}
    words = "--grid", folder / "grid.yaml", "--out", tmp_path / "runs"
    assert "count as not done: `harness migrate" in harness("plan", *words).out
    moved = harness("migrate", folder)
    assert (moved.code, moved.out) == (0, "6 records brought to the ids of today\n")
    after = records(folder)
    assert not before.keys() & after.keys()
    assert {record.result["migrated_from"] for record in after.values()} == before.keys()
    for record in after.values():
        old = before[record.result["migrated_from"]]
        assert old.result == {key: value for key, value in record.result.items() if key != "migrated_from"}
        assert (old.started_at, old.wall_s, old.environment) == (record.started_at, record.wall_s, record.environment)
    names = (path.name for path in (FIXTURES / f"runs-{MADE_BY}").rglob("*.*"))
    assert sorted(names) == sorted(path.name for path in folder.rglob("*.*"))
    assert harness("migrate", folder).out == "0 records brought to the ids of today\n"
    source = get_source({"name": "surfaces"})
    images.load(source, describe(source, "granite"), 32)  # a worker knows today's revision, and takes what is decoded
    done = harness("run", *words, "--only", "seed=2")
    assert done.code == 0, done
    assert "to do: 1 run (1 training, 2 evaluations);" in done.out  # the throughput is the whole grid's
    assert after.items() <= records(folder).items()
    assert {item.spec["seed"] for item in results if isinstance(item, Record) and item.kind == "train"} == {0, 1, 2}
    assert "3 runs (3 done)" in harness("status", folder).out


def test_what_cannot_be_brought_over_stays_and_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(FIXTURES / f"runs-{MADE_BY}", folder)
    grid = (folder / "grid.yaml").read_text()
    (folder / "grid.yaml").write_text(grid.replace("[granite]}", "[granite], side: 32}"))
    before = contents(folder)
    moved = harness("migrate", folder)
    assert (moved.code, moved.out.splitlines()) == (
        1,
        ["0 records brought to the ids of today", "6 stayed: its images are not those that the grid finds today"],
    )
    assert {**contents(folder), "plan.json": b""} == {**before, "plan.json": b""}
    claim = folder / INTERRUPTED / "claim.json"
    claim.write_text("{}")
    assert "has a claim.json: wait until `harness run` has ended" in refusal("migrate", folder)
