"""Records on disk: the first wins, failures are numbered, what cannot be read is named."""

import json
from pathlib import Path

import pytest

from harness.files import publish, write_atomic
from harness.records import Damaged, Failure, Record, Results, parse_record


def record(run_id: str = "a" * 16, value: float = 1.0) -> Record:
    return Record("train", run_id, {"seed": 0}, {"loss": value}, {}, "2026-01-01T00:00:00+00:00", 1.0)


def failure(run_id: str = "b" * 16) -> Failure:
    return Failure("train", run_id, {}, "error", "it broke", "Traceback", "2026-01-01T00:00:00+00:00", {})


def test_the_first_record_wins(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.done() == set()
    assert results.publish(record(value=1.0))
    assert not results.publish(record(value=2.0))
    assert results.record("a" * 16) == record(value=1.0)
    assert results.publish(record(value=3.0), replace=True)
    assert results.record("a" * 16).result == {"loss": 3.0}
    assert results.done() == {"a" * 16}


def test_attempts_are_numbered_and_hidden_by_a_record(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert [results.fail(failure()).attempt for _ in range(3)] == [1, 2, 3]
    assert results.last_failure("b" * 16).attempt == 3
    assert results.failed() == {"b" * 16}
    assert list(results) == [results.last_failure("b" * 16)]
    results.publish(record("b" * 16))
    assert results.failed() == set()
    assert list(results) == [record("b" * 16)]


def test_records_that_are_read_together_share_what_is_equal(tmp_path: Path) -> None:
    results = Results(tmp_path)
    written = []
    for seed in range(3):
        spec = {"train": {"method": {"name": "stfpm", "train": {"epochs": 1 + seed // 2}}, "seed": seed}, "map": {}}
        written.append(Record("evaluate", f"{seed}", spec, {}, {"packages": {"torch": "2"}}, "2026-01-01", 1.0))
        results.publish(written[-1])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "record.json").write_text(json.dumps(vars(written[0]) | {"spec": [1]}))
    *found, odd = results
    assert found == written
    assert isinstance(odd, Damaged)
    first, second, third = (one.spec["train"]["method"] for one in found)
    assert first is second is not third
    assert found[0].environment is found[2].environment


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text('{"schema": 1, "ki')
    (tmp_path / "grid.yaml").write_text("name: x")
    (found,) = results
    assert isinstance(found, Damaged)
    assert found.folder.name == "torn"
    with pytest.raises(ValueError, match="schema 99 is newer"):
        parse_record(json.dumps({"schema": 99}))


def test_nan_never_reaches_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        Results(tmp_path).publish(record(value=float("nan")))


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    assert publish(path, "one")
    assert not publish(path, "two")
    assert path.read_text() == "one"
    write_atomic(path, b"three")
    assert path.read_text() == "three"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]  # no temporary left
