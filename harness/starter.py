"""A first grid for somebody's own pictures: its sizes and settings, and the commented YAML. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dskd.size import Size, sides

METHODS = ["dskd", "stfpm", "reverse_distillation"]
SEEDS = [0, 1, 2]
STEP = 32  # sides of images are multiples of it
SHORT, SHORTEST = 256, 64  # pixels of the shorter side: of most grids, and at least
STRETCHED = 1.25  # of a picture's aspect, from which it is said
MOST_AREA = 4  # times the square of the shorter side that it is asked for
# What a CPU tries in turn until all runs take at most BUDGET_S: the shorter side, and epochs.
CPU_CHOICES = ((256, 50), (256, 30), (256, 20), (256, 10), (128, 20), (128, 10), (128, 5))
BUDGET_S = 15 * 60.0
SMALL_BATCH = 8  # of few images a small batch makes enough steps
PLACEHOLDER = "/path/to/your/pictures"
COMMENTS = {  # behind the keys of an entry
    "root": "the folder: absolute, or from where you type the command; $NAME and ~ are filled in",
    "normal": "the normal pictures: a folder, or a pattern with * ? [abc], ** for any depth, {category}",
    "test_normal": "normal pictures to test on",
    "abnormal": "the defective ones, only to test on; {defect} makes types of the folders' names",
    "masks": "where the defective pixels are marked; {stem}: the picture's name without its suffix",
    "file": "the table: .csv, .jsonl or .parquet",
    "columns": "which column is what, where it is called otherwise",
    "train_share": "of the normal pictures, to train on; drawn by a hash of split_seed and the path or group",
    "test_share": "of the normal pictures, held out to test; drawn by split_seed and content",
    "split_seed": "draws the pictures that are held out",
    "split": "tile keeps exposures of one tile together",
}


@dataclass(frozen=True)
class Teacher:
    """A backbone with weights that can be had on this machine. `remark`: what there is to say of them."""

    backbone: str
    weights: str
    remark: str = ""


@dataclass(frozen=True)
class Starter:
    """What a first grid says.

    Attributes:
        name: of the results folder.
        entry: of the data set.
        epochs: None for each method's published recipe.
        about: lines for the head of the file.
    """

    name: str
    entry: Mapping[str, Any]
    size: Size
    teacher: Teacher
    epochs: int | None = None
    about: tuple[str, ...] = ()


def image_size(width: int, height: int, short: int = SHORT) -> Size:
    """The size for pictures of width x height pixels: their aspect in multiples of 32, the shorter side `short` or what
    the picture has; a square is one number. Long strips lose in both until their area is that of four squares.
    """
    small, large = sorted((max(width, 1), max(height, 1)))
    low = min(short, max(SHORTEST, small // STEP * STEP))
    high = low * large / small
    if low * high > MOST_AREA * short**2:
        shrink = math.sqrt(MOST_AREA * short**2 / (low * high))
        low = max(STEP, round(low * shrink / STEP) * STEP)
        high = low * large / small
    high = max(low, round(high / STEP) * STEP)
    return low if low == high else (low, high) if height < width else (high, low)


def common_size(pictures: Sequence[tuple[int, int]], short: int = SHORT) -> tuple[Size, float]:
    """The size for pictures of (width, height) pixels: that of most of them, or of the middle aspect where no size has
    half of them; and the share of those whose aspect it changes by more than STRETCHED.
    """
    if not pictures:
        return short, 0.0
    size, count = Counter(image_size(*each, short) for each in pictures).most_common(1)[0]
    if count < len(pictures) / 2:
        size = image_size(*sorted(pictures, key=lambda each: each[0] / max(each[1], 1))[len(pictures) // 2], short)
    height, width = sides(size)
    changes = (each[0] * height / max(each[1] * width, 1) for each in pictures)
    return size, sum(not 1 / STRETCHED <= change <= STRETCHED for change in changes) / len(pictures)


def text(starter: Starter) -> str:
    """The grid file."""
    defaults = [
        (
            f"image_size: {written(starter.size)}",
            "height and width, or a square's side; larger ones show smaller defects and take longer",
        ),
        (f"weights: {starter.teacher.weights}", "of the teacher: packaged, imagenet, random, or the path of a file"),
    ]
    if starter.epochs is None:
        defaults.append(("# train.epochs: 20", "for a quick look; without it each method trains as published"))
    else:
        defaults += [
            (f"train.epochs: {starter.epochs}", "short, for this machine; without these three lines each method"),
            (f"train.batch_size: {SMALL_BATCH}", "trains as published (100 epochs and more): that is what to report"),
            ("train.schedule: cosine", ""),
        ]
    lines = [
        *(f"# {line}" for line in starter.about),
        *_aligned([(f"name: {starter.name}", f"results go to runs/{starter.name}")]),
        "axes:",
        *_aligned(
            [
                (f"  method: {written(METHODS)}", "`harness methods` lists what there is"),
                (f"  backbone: {written([starter.teacher.backbone])}", "`harness backbones`; resnet18 is the papers'"),
                (f"  seed: {written(SEEDS)}", "each is a training; fewer than 3 say little, 5 are better"),
            ]
        ),
        "  dataset:",
        *_aligned(_entry_lines(starter.entry)),
        "defaults:",
        *_aligned([(f"  {line}", comment) for line, comment in defaults]),
        *_aligned(
            [
                ("# calibrate: 0.2", "holds good pictures out for thresholds, by which `harness predict` decides"),
                ("bench: {batch_sizes: [1, 8], seconds: 1}", "images per second, measured after the trainings"),
                ("save: {scores: true, maps: 8, weights: true}", "a score for each picture, 8 maps, the students"),
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _entry_lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data set's entry, a key a line, with the keys as comments that it could have."""
    shown: list[tuple[str, str]] = []
    for i, (key, value) in enumerate(entry.items()):
        shown.append((f"    {'-' if i == 0 else ' '} {key}: {written(value)}", COMMENTS.get(key, "")))
    if entry["name"] == "folder" and "normal" in entry:
        if "abnormal" not in entry:
            shown.append(("      # abnormal: bad", COMMENTS["abnormal"]))
        if "masks" not in entry:
            shown.append(("      # masks: masks/{stem}_mask.png", COMMENTS["masks"]))
        if "test_normal" not in entry:
            shown.append(("      # test_normal: test/good", COMMENTS["test_normal"]))
            shown.append(("      # test_share: 0.2", COMMENTS["test_share"]))
    if entry["name"] not in ("hub", "surfaces"):
        shown.append(("      # categories: [a, b]", "only these"))
        shown.append(("      # resize: pad", "keeps the aspect of pictures that differ in it, with black beside them"))
    return shown


def _aligned(lines: Iterable[tuple[str, str]]) -> list[str]:
    """Each with its comment, in one column where that is not too far to the right."""
    lines = list(lines)
    column = min(44, max((len(line) for line, _ in lines), default=0))
    return [f"{line:{column}}  # {comment}" if comment else line for line, comment in lines]


def written(value: Any) -> str:
    """A value as a grid file has it, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    options = {"default_flow_style": True, "allow_unicode": True, "width": 10**6, "sort_keys": False}
    text = yaml.safe_dump([value], **options).strip()[1:-1]
    # A name may hold a line break: as an escape then.
    return text if len(text.splitlines()) == 1 else yaml.safe_dump([value], **options, default_style='"').strip()[1:-1]


def placeholder(teacher: Teacher, size: Size = SHORT) -> Starter:
    """A grid to fill in."""
    about = (
        "A grid for pictures of your own. Change root, normal and abnormal, then type: harness run grid.yaml",
        "`harness init --data FOLDER` writes such a file for a folder as it finds it, with sizes and times that fit.",
    )
    entry = {"name": "folder", "root": PLACEHOLDER, "normal": "good", "abnormal": "bad"}
    return Starter("mine", entry, size, teacher, 20, about)
