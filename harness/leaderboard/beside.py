"""What lies beside the records: learning curves, metrics along a training, scores by image, and pictures of maps.

A file that is not as a run writes it is passed over as a whole, and named: half a curve would be a wrong one.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from harness.foreign import read_file
from harness.records import Damaged
from harness.shapes import MisfitError
from harness.text import one_line

CURVE_FILE, METRICS_FILE, SCORES_FILE, MAPS = "curve.csv", "metrics.csv", "scores.csv", "maps"
_METRIC = re.compile("(?:image|pixel)_(?:auroc|ap|f1_max)|aupro_[01][.][0-9][0-9]")
_PICTURE = re.compile(r"([0-9]{4,9})_.*[.]png", re.DOTALL)  # `<position>_<defect>_<image>.png`


class Score(NamedTuple):
    """A line of scores.csv: a test image and its score."""

    path: str
    defect: str
    anomalous: bool
    score: float


Row = dict[str, float | None]
T = TypeVar("T")


def read_curve(folder: Path, skipped: list[Damaged]) -> list[Row]:
    """`epoch` and `loss` of each epoch of a training; empty where there is none.

    Args:
        skipped: what cannot be used is named there, as by all functions here.
    """
    return _read(folder / CURVE_FILE, lambda line: {"epoch": _epoch(line), "loss": _number(line["loss"])}, skipped)


def read_metrics(folder: Path, skipped: list[Damaged]) -> list[Row]:
    """`epoch` and the metrics (shares, None where undefined) of each epoch that they were recorded after."""
    return _read(folder / METRICS_FILE, _metrics, skipped)


def read_scores(folder: Path, skipped: list[Damaged]) -> list[Score]:
    """Of each test image of an evaluation, in the order of the test set; empty where they were not saved."""
    return _read(folder / SCORES_FILE, _score, skipped)


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures of anomaly maps that an evaluation saved, by name; other files there are nobody's business."""
    try:
        names = sorted(os.listdir(folder / MAPS))
    except OSError:
        return {}
    return {name: folder / MAPS / name for name in names if _PICTURE.fullmatch(name)}


def position_of(name: str) -> int:
    """Of a picture's image in scores.csv, by its name."""
    return int(name.partition("_")[0])


def is_metric(key: str) -> bool:
    """Whether records and metrics.csv mean a metric by this key, a share or nothing."""
    return _METRIC.fullmatch(key) is not None


def note(skipped: list[Damaged], path: Path, why: str) -> None:
    """Name a file that cannot be used, once."""
    found = Damaged(path, why)
    if found not in skipped:
        skipped.append(found)


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
    return Score(line["path"], line["defect"], line["anomalous"] == "1", _number(line["score"]))


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
