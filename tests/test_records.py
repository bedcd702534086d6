"""Records on disk: the first wins, failures are numbered, what does not pass the gate is named and set aside."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd.config import ConfigError, replace, to_mapping
from dskd.methods import get_method
from harness import records
from harness.files import publish, write_atomic
from harness.foreign import check_links, log_tail
from harness.records import Damaged, Failure, Record, Results, parse_record
from harness.spec import Data, TrainSpec, Weights


def training(seed: int = 0, epochs: int = 1) -> dict:
    method = replace(get_method("stfpm"), {"train.epochs": epochs})
    return to_mapping(TrainSpec(method, "resnet18", Weights(), Data("set", "a", "m"), seed))


def record(run_id: str = "a" * 16, value: float = 1.0) -> Record:
    return Record("train", run_id, training(), {"loss": value}, {}, "2026-01-01T00:00:00+00:00", 1.0)


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
        spec = {"train": training(seed, 1 + seed // 2), "map": {}, "score": "max", "aupro_limits": [0.3]}
        result, about = {"precision": "fp32"}, {"packages": {"torch": "2"}}
        written.append(Record("evaluate", f"{seed}", spec, result, about, "2026-01-01", 1.0))
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


def test_a_record_that_would_not_pass_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result\.train_s: -1\.0 is not possible; a number above 0"):
        Results(tmp_path).publish(Record("train", "a" * 16, training(), {"train_s": -1.0}, {}, "2026-01-01", 1.0))
    assert not list(tmp_path.iterdir())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(b'{"schema": 1, "ki'),
    "folder": Path.mkdir,
    "link-loop": lambda path: path.symlink_to(path),
    "link-to-nothing": lambda path: path.symlink_to("gone"),
}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_takes_the_place_of_one_that_does_not_pass(damage: str, replace: bool, tmp_path: Path) -> None:
    run = tmp_path / ("a" * 16)
    run.mkdir()
    DAMAGES[damage](run / "record.json")
    results = Results(tmp_path)
    assert not results.has(run.name)
    assert [each.folder for each in results.survey().damaged] == [run]
    assert results.publish(record(value=2.0), replace=replace)
    assert results.has(run.name)
    assert results.record(run.name) == record(value=2.0)
    if not replace:
        assert os.path.lexists(run / "record.json.damaged-1")


def test_what_is_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    results, other = Results(tmp_path), Results(tmp_path)
    run = results.run_folder("a" * 16).path
    run.mkdir()
    for number, content in enumerate(["first", "second"], start=1):
        (run / "record.json").write_text(content)
        assert other.set_aside({"b" * 16}) == []
        (moved,) = results.set_aside({"a" * 16})
        assert moved.folder == run / f"record.json.damaged-{number}"
    assert [(run / f"record.json.damaged-{number}").read_text() for number in (1, 2)] == ["first", "second"]
    assert results.set_aside() == []
    assert results.survey() == records.Survey(set(), set(), [])


def test_a_good_record_that_was_moved_by_mistake_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look of one supervisor and its rename another one has set the record aside and done the run."""
    results, other = Results(tmp_path), Results(tmp_path)
    run = results.run_folder("a" * 16).path
    run.mkdir()
    (run / "record.json").write_text("{")
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        assert other.set_aside()
        assert other.publish(record(value=5.0))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert results.set_aside() == []
    assert results.record(run.name) == record(value=5.0)
    assert (run / "record.json.damaged-2").read_text() == "{"
    assert not (run / "record.json.damaged-1").exists()


def test_a_record_that_cannot_be_read_is_neither_done_nor_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell whether it is good: on a disk that fails for a moment it would be lost."""
    Results(tmp_path).publish(record())
    read = os.read

    def lost(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    results = Results(tmp_path)
    monkeypatch.setattr(os, "read", lost)
    assert [each.message for each in results.survey().damaged] == ["record.json cannot be read (Input/output error)"]
    assert results.set_aside() == []
    with pytest.raises(OSError, match="Input/output error"):
        results.publish(record(value=2.0))
    monkeypatch.setattr(os, "read", read)
    assert results.record("a" * 16) == record()


def test_a_record_is_read_once_to_know_that_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "runs")
    for number in range(3):
        results.publish(record(f"{number:016x}"))
    parsed = []
    parse = records.parse_record
    monkeypatch.setattr(records, "parse_record", lambda *args: parsed.append(1) or parse(*args))
    monkeypatch.setattr(records.remembered, "WORTH", 2)
    assert len(results.done()) == len(Results(tmp_path / "runs").done()) == len(results.done()) == len(parsed) == 3
    (tmp_path / "runs" / f"{0:016x}" / "record.json").write_text("{")
    assert len(results.done()) == len(Results(tmp_path / "runs").done()) == 2
    (cached,) = (Path(os.environ["HARNESS_CACHE"]) / "records").glob("*.json")
    for torn in ("{", "[1]", '{"a": 1}', '{"0000000000000001": "x"}'):
        cached.write_text(torn)
        assert len(Results(tmp_path / "runs").done()) == 2
    cached.unlink()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "runs" / f"{0:016x}" / "record.json"))  # a file
    assert len(Results(tmp_path / "runs").done()) == 2


def test_the_newest_attempt_that_can_be_read_counts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for _ in range(2):
        results.fail(failure())
    attempts = results.run_folder("b" * 16).path / "attempts"
    (attempts / "2.json").write_text("{")
    (attempts / "²".join(["", ".json"])).write_text("{}")  # a digit to Python, and no number
    assert results.last_failure("b" * 16).attempt == 1
    torn, found = results
    assert (torn.folder, found.attempt) == (attempts / "2.json", 1)
    assert results.fail(failure()).attempt == 3
    assert results.failed() == {"b" * 16}


def test_links_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_links(tmp_path)
    assert not list(tmp_path.iterdir())

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigError, match=f"{tmp_path} is on a disk without hard links .*; name a folder on another"):
        check_links(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="gone cannot be written"):
        check_links(tmp_path / "gone")


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert log_tail(log) == ""
    log.write_bytes(b"one\ntwo\n\xff three\n")
    assert log_tail(log) == "one\ntwo\n\ufffd three\n"
    assert log_tail(log, 10) == "\ufffd three\n"
    assert log_tail(log, 4) == "ree\n"  # of a single line its end
    os.truncate(log, 1 << 33)  # 8 GiB, of which nothing is on the disk
    assert len(log_tail(log)) == 16_384
    log.unlink()
    os.mkfifo(log)
    assert log_tail(log) == ""
