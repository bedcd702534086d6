"""One self-contained HTML page of the pictures with the highest scores. Needs jinja2."""

import importlib.metadata
import importlib.resources
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw

from harness.environment import utc_now
from harness.predict.gather import as_it_is
from harness.predict.model import Prediction, Unreadable
from harness.predict.regions import Defect, largest, pixel_size
from harness.predict.table import Line, key, key_of
from harness.predict.work import Scale, Work
from harness.run.pictures import OUTLINE, coloured, scale_of
from harness.run_folder import MAP_COLOURS
from harness.text import shown

SIDE = 320  # pixels of a square picture on the page; others have about as many in all
QUALITY = 82  # of WebP


@dataclass(frozen=True)
class Case:
    """`panels`: data URIs of the picture with its box, the map over it and the map alone; empty where it could not be
    read again, and `why` says so. `aspect`: width by height of what is shown.
    """

    line: Line
    panels: tuple[str, ...] = ()
    why: str = ""
    aspect: float = 1.0


def render(work: Work) -> str:
    """The page as text. The pictures are read and inspected once more, so that nothing of them had to be kept."""
    found, worst = work.journal.summary, work.journal.summary.worst
    results = list(work.predictions([line.path for line in worst]))
    maps = [result.map for result in results if isinstance(result, Prediction)]
    scale = work.scale or (scale_of(np.stack(maps)) if maps else (0.0, 1.0))
    cases = [_case(work, line, result, scale) for line, result in zip(worst, results, strict=True)]
    environment = Environment(
        loader=PackageLoader("harness.predict", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,  # as the report's page does
    )
    styles = importlib.resources.files("harness.leaderboard") / "page" / "report.css"  # one look for both pages
    return environment.get_template("worst.html.j2").render(
        about=work.model.about,
        found=found,
        cases=cases,
        thresholds=work.thresholds,
        scale=scale,
        fixed=work.is_fixed,
        colours=", ".join(f"rgb{colour}" for colour in MAP_COLOURS),
        styles=Markup(styles.read_text()),
        made_at=utc_now(),
        version=importlib.metadata.version("dskd-harness"),
    )


def _case(work: Work, line: Line, result: Prediction | Unreadable, scale: Scale) -> Case:
    if isinstance(result, Unreadable):
        return Case(line, why=result.why)
    if key_of(as_it_is(line.path)) != key(line.path, line.bytes, line.mtime):
        return Case(line, why="the file has changed since")
    preparation = work.model.content.preparation
    wide, high = pixel_size(preparation, result.size)
    rows, columns = result.map.shape
    aspect = columns * wide / (rows * high)
    defect = largest(result.map, work.thresholds.pixel, preparation, result.size)
    panels = [result.pixels, *coloured(result.pixels, result.map, scale)]
    boxes = defect, defect, None
    return Case(line, tuple(map(_encode, panels, (aspect,) * len(panels), boxes)), aspect=aspect)


def _encode(panel: np.ndarray, aspect: float, defect: Defect | None) -> str:
    """A data URI, in the shape that the picture has."""
    stretch = min(max(aspect**0.5, 0.4), 2.5)
    width = round(SIDE * stretch)
    picture = Image.fromarray(panel).resize((width, max(1, round(width / aspect))), Image.Resampling.BICUBIC)
    if defect is not None:
        x, y = picture.width / panel.shape[1], picture.height / panel.shape[0]
        box = defect.inner
        corners = [box.left * x, box.top * y, box.right * x - 1, box.bottom * y - 1]
        ImageDraw.Draw(picture).rectangle(corners, outline=OUTLINE, width=2)
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{b64encode(stream.getvalue()).decode()}"
