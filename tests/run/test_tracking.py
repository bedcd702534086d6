"""Trackers hear of epochs and records, and what goes wrong in them costs a line in the log."""

import logging
import time
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from dskd.config import ConfigError, to_mapping
from dskd.methods import get_method
from harness import events
from harness.gridfile import parse
from harness.job import TrainJob, decode, encode
from harness.records import Record, Results
from harness.run import tracking
from harness.run.tracking import tracked
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A job whose training has a record."""
    method = get_method("stfpm")
    spec = TrainSpec(method, "resnet18", Weights(), Data("set", "a", "m"), 0, 64)
    result = {"loss_last": 0.25, "epochs": 2, "device": "a processor", "degenerate": False}
    record = Record("train", spec.id, to_mapping(spec), result, {}, "2026-01-01T00:00:00+00:00", 1.0)
    Results(tmp_path).publish(record)
    evaluation = EvaluateSpec(spec, method.map)
    return TrainJob(spec, (evaluation,), {}, None, str(tmp_path), grid="grid", tracking="tensorboard")


def run(job: TrainJob) -> list[str]:
    heard: list[str] = []
    with tracked(job, lambda event: heard.append("epoch" if isinstance(event, events.Epoch) else "record")) as emit:
        for epoch in (1, 2):
            emit(events.Epoch(epoch, 2, 1 / epoch, 10.0))
        emit(events.Recorded("train", job.spec.id, 1.0, {}))
    return heard


def test_tensorboard_has_epochs_and_the_records_numbers(job: TrainJob) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert decode(encode(job)) == job
    assert run(job) == ["epoch", "epoch", "record"]
    (folder,) = (Path(job.results) / "tracking").iterdir()
    assert folder.name == f"stfpm_resnet18_set_a_seed_0_{job.spec.id}"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert events.Scalars("train/loss_last")[0].value == 0.25
    assert set(events.Tags()["scalars"]) == {"loss", "images_per_s", "train/loss_last", "train/epochs"}


class Broken(GeneralTracker):
    """Fails at the first value, or hangs."""

    name, requires_logging_directory, tracker = "broken", False, None
    hangs = False

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        if self.hangs:
            time.sleep(60)
        raise ConnectionError("no network")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_tracker_is_never_in_the_way(
    hangs: bool, job: TrainJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "hangs", hangs)
    monkeypatch.setattr(tracking, "GRACE_S", 0.2)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert run(job) == ["epoch", "epoch", "record"]
    assert time.monotonic() - started < 5
    (line,) = [record.getMessage() for record in caplog.records]
    expected = "did not end within 0.2 s" if hangs else "failed, the run goes on: ConnectionError: no network"
    assert line.startswith(f"tracking: tensorboard {expected}")


def test_off_by_default() -> None:
    document = {"name": "x", "axes": {"method": "stfpm", "backbone": "resnet18", "dataset": "surfaces"}}
    assert parse(document).tracking is None
    assert parse(document | {"tracking": "mlflow"}).tracking == "mlflow"
    with pytest.raises(ConfigError, match="tracking: 'tensorbord' is not possible; did you mean 'tensorboard'"):
        parse(document | {"tracking": "tensorbord"})
