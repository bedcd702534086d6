"""Pictures to lines of the table and to heat maps, a batch at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dskd.config import ConfigError
from harness.predict.content import Content
from harness.predict.gather import Found
from harness.predict.model import Model, Prediction, Unreadable
from harness.predict.regions import largest
from harness.predict.table import Journal, Line, key_of, mtime_text
from harness.run.pictures import coloured, save_panels, scale_of
from harness.text import file_name, one_line

HEATMAPS = "heatmaps"
MOST_LINES, MOST_S = 256, 1.0  # after which lines are written: so much is done again after a `kill -9`
SCALED_BY = 32  # the first pictures, whose maps decide the colours where no thresholds do
Scale = tuple[float, float]


@dataclass
class Tally:
    """What a call came to: `done` pictures, `failed` of them not readable and `anomalous` of them above the threshold;
    `passed` were in the table before, and `unread` of those and of the done ones could not be read.
    """

    done: int = 0
    failed: int = 0
    anomalous: int = 0
    passed: int = 0
    unread: int = 0


@dataclass(frozen=True)
class Thresholds:
    """What scores and maps are compared with; None where there is nothing to make it from. `rate`: the false alarm rate
    that they are for; None where there is no threshold at all.
    """

    rate: float | None
    image: float | None
    pixel: float | None
    note: str = ""

    @property
    def decides(self) -> bool:
        return self.image is not None


def thresholds_of(content: Content, rate: float | None) -> Thresholds:
    """Those for a false alarm rate, or for the model's own.

    Raises:
        ConfigError: no threshold for that rate, with what is attainable.
    """
    if rate is None:
        own = content.rate if content.threshold is not None or content.pixel_threshold is not None else None
        return Thresholds(own, content.threshold, content.pixel_threshold)
    image = content.threshold_at(rate)
    try:
        return Thresholds(rate, image, content.pixel_threshold_at(rate))
    except ConfigError as error:
        return Thresholds(rate, image, None, f"no boxes: {error}")


class Work:
    """One model at one rate, with the table that its predictions go to.

    Args:
        thresholds: by `thresholds_of`.
        heatmaps: whether each picture gets one, and those in the table that have none.
        report: called after each picture.
        stopped: asked before each picture is read.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        thresholds: Thresholds,
        heatmaps: bool = False,
        report: Callable[[Tally], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.journal, self.thresholds = model, journal, thresholds
        self.heatmaps = journal.folder / HEATMAPS if heatmaps else None
        self.report, self.stopped = report, stopped
        self.tally = Tally()

    def take(self, found: Iterable[Found]) -> None:
        """Predict what is not in the table yet. However it ends, what was done is in the table.

        Raises:
            ConfigError: the folder cannot be written any more.
        """
        started: deque[Found] = deque()
        results = self._scaled(self.predictions(self._to_do(found, started)))
        lines: list[Line] = []
        written = time.monotonic()
        try:
            for result in results:
                each = started.popleft()
                if key_of(each) not in self.journal.done:
                    lines.append(self._line(each, result))
                else:  # for its heat map
                    self.tally.passed += 1
                if self.heatmaps and isinstance(result, Prediction):
                    self._save_heatmap(self.heatmaps / heatmap_name(each), result)
                self.report(self.tally)
                if len(lines) >= MOST_LINES or time.monotonic() - written >= MOST_S:
                    batch, lines, written = lines, [], time.monotonic()
                    self.journal.append(batch)  # an interruption within must not write it twice
        finally:
            if lines:
                self.journal.append(lines)

    def predictions(self, paths: Iterable[str]) -> Iterator[Prediction | Unreadable]:
        return self.model.predictions(paths, rate=self.thresholds.rate if self.thresholds.decides else None)

    def _to_do(self, found: Iterable[Found], started: "deque[Found]") -> Iterator[str]:
        """Paths, each of which is in `started` by then. What comes of them comes in this order."""
        for each in found:
            if self.stopped():
                return
            mark = key_of(each)
            failed = mark in self.journal.failed
            if mark in self.journal.done and (failed or not self._lacks_heatmap(each)):
                self.tally.passed += 1
                self.tally.unread += failed
                continue
            started.append(each)
            yield each.path

    def _lacks_heatmap(self, found: Found) -> bool:
        return self.heatmaps is not None and not (self.heatmaps / heatmap_name(found)).exists()

    def _line(self, found: Found, result: Prediction | Unreadable) -> Line:
        self.tally.done += 1
        line = Line(found.path, bytes=found.bytes, mtime=mtime_text(found.mtime_ns))
        if isinstance(result, Unreadable):
            self.tally.failed += 1
            self.tally.unread += 1
            return line._replace(error=one_line(result.why.removeprefix(f"{result.path} ")))
        self.tally.anomalous += bool(result.anomalous)
        width, height = result.size
        line = line._replace(score=result.score, p_value=result.p_value, anomalous=result.anomalous)
        line = line._replace(width=width, height=height, heatmap=heatmap_name(found) if self.heatmaps else "")
        defect = largest(result.map, self.thresholds.pixel, self.model.content.preparation, result.size)
        if defect is None:
            return line
        return line._replace(**vars(defect.box), area=round(defect.area, 6))

    def _scaled(self, results: Iterator[Prediction | Unreadable]) -> Iterator[Prediction | Unreadable]:
        """The same; where nothing else decides the colours of heat maps, the first of them do, for good."""
        first: list[Prediction | Unreadable] = []
        if self.heatmaps and self.scale is None:
            maps = []
            for result in results:
                first.append(result)
                maps += [result.map] if isinstance(result, Prediction) else []
                if len(maps) == SCALED_BY:
                    break
            if maps:
                self.journal.keep(scale=scale_of(np.stack(maps)))
        yield from first
        yield from results

    @property
    def scale(self) -> Scale | None:
        """Of the colours of maps: the values of the darkest and of the brightest one. Dark up to the threshold of
        pixels, and the middle colour at that of images; of a model without thresholds what the table's first pictures
        decided, None before that.
        """
        if self.is_fixed:
            return self.thresholds.pixel, 2 * self.thresholds.image - self.thresholds.pixel
        kept = self.journal.state.get("scale")
        return tuple(kept) if kept else None

    @property
    def is_fixed(self) -> bool:
        """Whether thresholds decide the colours: of a score that is a mean it may lie below that of pixels."""
        image, pixel = self.thresholds.image, self.thresholds.pixel
        return image is not None and pixel is not None and image > pixel

    def _save_heatmap(self, path: Path, result: Prediction) -> None:
        """No sync: unlike a line it can be made again."""
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            save_panels(stream, [result.pixels, *coloured(result.pixels, result.map, self.scale or (0.0, 1.0))])


def heatmap_name(found: Found) -> str:
    """The picture's name and the key of the table: no two files have the same, nor two states of one file."""
    return f"{file_name(Path(found.path).stem)[:40]}-{key_of(found):024x}.png"
