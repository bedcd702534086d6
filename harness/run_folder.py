"""What lies where in a results folder, and the one reader and the one writer of each table beside a record.

A table that is not as a run writes it is passed over as a whole, and named: half a curve would be a wrong one.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.files import write_atomic
from harness.foreign import Damaged, read_file
from harness.shapes import MisfitError
from harness.text import one_line

RECORD = "record.json"
LONGEST = 240  # bytes of a file's name: 255 is what file systems take, and a temporary one has ten more
_METRIC = re.compile(
    "(?:image|pixel)_(?:auroc|ap|f1_max)|aupro_[01][.][0-9][0-9]|aupimo|"
    "(?:recall|fpr|precision|f1|pixel_fpr)_at_threshold"
)
_PICTURE = re.compile(r"([0-9]{4,9})_.*[.]png", re.DOTALL)
Row = dict[str, float | None]
T = TypeVar("T")


@dataclass(frozen=True)
class ResultsFolder:
    """The files of a grid's results folder, `runs/NAME`, beside the folders of its runs."""

    path: Path

    @property
    def grid(self) -> Path:
        """The grid file's very bytes."""
        return self.path / "grid.yaml"

    @property
    def plan(self) -> Path:
        """The runs and measurements of the whole grid, for who counts what is missing."""
        return self.path / "plan.json"

    @property
    def index(self) -> Path:
        """What lies where, a line for each piece of work; written for people, and read by nothing here."""
        return self.path / "index.csv"

    @property
    def shards(self) -> Path:
        """A file for each supervisor that is at work."""
        return self.path / "shards"

    @property
    def slurm(self) -> Path:
        """Batch scripts, their outputs, and a journal of each submission."""
        return self.path / "slurm"

    @property
    def logs(self) -> Path:
        """What each `harness run` printed."""
        return self.path / "logs"

    @property
    def tracking(self) -> Path:
        """What an experiment tracker writes of its own."""
        return self.path / "tracking"

    @property
    def leaderboard(self) -> Path:
        """The output of the last job of a submission."""
        return self.path / "leaderboard.txt"

    def run(self, run_id: str) -> "RunFolder":
        return RunFolder(self.path / run_id)


_ANY = ResultsFolder(Path())
BESIDE_RUNS = frozenset(path.name for path in (_ANY.shards, _ANY.slurm, _ANY.logs, _ANY.tracking))  # folders


@dataclass(frozen=True)
class RunFolder:
    """The files of one run: of a training, an evaluation or a throughput measurement."""

    path: Path

    @property
    def record(self) -> Path:
        """There only for a run that ended well."""
        return self.path / RECORD

    @property
    def attempts(self) -> Path:
        """A file `<n>.json` for each failed attempt."""
        return self.path / "attempts"

    @property
    def claim(self) -> Path:
        """Which supervisor is at the run; its time is the last sign of life."""
        return self.path / "claim.json"

    @property
    def log(self) -> Path:
        """What the worker's processes printed, attempt after attempt."""
        return self.path / "log.txt"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished training."""
        return self.path / "checkpoint.pt"

    @property
    def checkpoint_shards(self) -> Path:
        """The pieces of it that DeepSpeed's engine writes itself, in a folder for each save."""
        return self.path / "checkpoint.shards"

    @property
    def students(self) -> Path:
        """The trained students' weights."""
        return self.path / "students.safetensors"

    @property
    def folds(self) -> Path:
        """The students of `calibrate: {folds: K}`, a file for each fold, which evaluations make thresholds with."""
        return self.path / "folds"

    def fold(self, number: int) -> Path:
        """Of the students that were trained without it; numbers begin at 1."""
        return self.folds / f"{number}.safetensors"

    @property
    def curve(self) -> Path:
        return self.path / "curve.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def scores(self) -> Path:
        return self.path / "scores.csv"

    @property
    def calibration(self) -> Path:
        """Of an evaluation whose training held normal images out for thresholds, or trained by folds for them."""
        return self.path / "calibration.csv"

    @property
    def maps(self) -> Path:
        """Pictures of anomaly maps, named by `picture_name`."""
        return self.path / "maps"


# Of pictures of maps, from the lowest score to the highest: dark blue over violet and orange to light yellow (our
# choice). Brightness rises with the score, for any eye and in grey.
MAP_COLOURS = ((10, 10, 60), (110, 20, 120), (210, 60, 80), (250, 150, 40), (255, 250, 180))
PANELS = "panels"  # the text of such a picture that says how many it has side by side; the first ones had three


class Score(NamedTuple):
    """A line of scores.csv: a test image and its score. `group`: images of one group show one object; empty where it
    shows another one than all others, None in files of before there was this column.
    """

    path: str
    defect: str
    anomalous: bool
    score: float
    group: str | None = None


class Calibrated(NamedTuple):
    """A line of calibration.csv: a normal image that was held out for thresholds alone, and its score. `group`: as of
    `Score`.
    """

    path: str
    group: str
    score: float


def write_curve(run: RunFolder, epochs: Sequence[Mapping[str, Any]]) -> None:
    """The learning curve of a training, a line for each epoch."""
    _write(run.curve, epochs)


def read_curve(run: RunFolder, skipped: list[Damaged]) -> list[Row]:
    """`epoch` and `loss` of each epoch of a training; empty where there is none.

    Args:
        skipped: what cannot be used is named there, as by all readers here.
    """
    return _read(run.curve, lambda line: {"epoch": _epoch(line), "loss": _number(line["loss"])}, skipped)


def write_metrics(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """The metrics along a training: a line for each epoch that they were recorded after."""
    _write(run.metrics, rows)


def read_metrics(run: RunFolder, skipped: list[Damaged]) -> list[Row]:
    """`epoch` and the metrics (shares, None where undefined) of each epoch that they were recorded after."""
    return _read(run.metrics, _metrics, skipped)


def write_scores(run: RunFolder, scores: Sequence[Score]) -> None:
    """Of each test image of an evaluation, in the order of the test set, to the last bit."""
    _write(run.scores, [one._asdict() | {"anomalous": int(one.anomalous), "score": repr(one.score)} for one in scores])


def read_scores(run: RunFolder, skipped: list[Damaged]) -> list[Score]:
    """Of each test image of an evaluation, in the order of the test set; empty where they were not saved."""
    return _read(run.scores, _score, skipped)


def write_calibration(run: RunFolder, scores: Sequence[Calibrated]) -> None:
    """Of each normal image that was held out for thresholds, in the order of the data set, to the last bit."""
    _write(run.calibration, [one._asdict() | {"score": repr(one.score)} for one in scores])


def read_calibration(run: RunFolder, skipped: list[Damaged]) -> list[Calibrated]:
    """Of each normal image that was held out for an evaluation's thresholds; empty where there are none."""
    return _read(run.calibration, _calibrated, skipped)


def picture_name(position: int, defect: str, image: str) -> str:
    """`<position>_<defect>_<image>.png`, the end of a long one cut off: the position tells pictures apart.

    Args:
        position: of the image in scores.csv; image: its path.
    """
    text = f"{position:04d}_{defect}_{Path(image).stem}".replace("/", "_")
    return os.fsencode(text)[: LONGEST - len(".png")].decode(errors="ignore") + ".png"


def pictures(run: RunFolder) -> dict[str, Path]:
    """The pictures of anomaly maps that an evaluation saved, by name; other files there are nobody's business."""
    try:
        names = sorted(os.listdir(run.maps))
    except OSError:
        return {}
    return {name: run.maps / name for name in names if _PICTURE.fullmatch(name)}


def position_of(name: str) -> int:
    """Of a picture's image in scores.csv, by its name."""
    return int(name.partition("_")[0])


def is_metric(key: str) -> bool:
    """Whether records and metrics.csv mean a metric by this key, a share or nothing."""
    return _METRIC.fullmatch(key) is not None


def is_at_threshold(key: str) -> bool:
    """Whether it is a metric that only evaluations with a threshold have."""
    return is_metric(key) and key.endswith("_at_threshold")


def note(skipped: list[Damaged], path: Path, why: str) -> None:
    """Name a file that cannot be used, once."""
    found = Damaged(path, why)
    if found not in skipped:
        skipped.append(found)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def _read(path: Path, parse: Callable[[dict[str, str]], T], skipped: list[Damaged]) -> list[T]:
    try:
        text = read_file(path)[0].decode()
        lines = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        if any(None in line or None in line.values() for line in lines):
            raise ValueError("has lines of different lengths")
        return [parse(line) for line in lines]
    except FileNotFoundError:
        return []
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except KeyError as error:
        why = f"has no column {error}"
    except (MisfitError, csv.Error, TypeError, ValueError) as error:
        why = one_line(str(error))[:120]
    note(skipped, path, why)
    return []


def _metrics(line: dict[str, str]) -> Row:
    return {"epoch": _epoch(line)} | {key: _share(value) for key, value in line.items() if is_metric(key)}


def _score(line: dict[str, str]) -> Score:
    if line["anomalous"] not in ("0", "1"):
        raise ValueError("has a line that is none of a test image")
    return Score(line["path"], line["defect"], line["anomalous"] == "1", _number(line["score"]), line.get("group"))


def _calibrated(line: dict[str, str]) -> Calibrated:
    return Calibrated(line["path"], line["group"], _number(line["score"]))


def _epoch(line: dict[str, str]) -> int:
    return int(line["epoch"])


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text}, which is no finite number")
    return value


def _share(text: str) -> float | None:
    value = _number(text) if text else None
    if value is not None and not 0 <= value <= 1 + 1e-6:
        raise ValueError(f"holds {text}, which is no share from 0 to 1")
    return value
