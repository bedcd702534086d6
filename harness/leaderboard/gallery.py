"""Pictures of anomaly maps that runs saved, chosen for a report: the best and worst cases of each row, side by side."""

import itertools
from base64 import b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from harness.foreign import Damaged
from harness.leaderboard.table import Board
from harness.run_folder import MAP_COLOURS, PANELS, RunFolder, note, pictures, position_of, read_scores

SIDE = 224  # pixels of a square picture on the page; others have about as many in all
QUALITY = 78  # of WebP
MOST_PER_ROW = 4  # best and worst cases each, of a row and category
GOOD = "good"  # the defect of a picture that has none
OUT_OF = 3  # so many saved ones there must be for each that is called best or worst


@dataclass(frozen=True)
class Scored:
    """A test image as scores.csv has it. `standing`: the share of the images of the other class that its score is on
    the right side of, a tie counting half; None where the other class is absent.
    """

    image: str
    defect: str
    standing: float | None


@dataclass
class Case:
    """One test image with the saved pictures (image, mask outlined, map over it, map alone) of all rows that have one,
    and how they scored it (empty where scores were not saved). `roles`: `worst of dskd`, `best of stfpm`.
    """

    dataset: str
    category: str
    file: str
    seed: int
    pictures: dict[str, Path]
    scored: dict[str, Scored]
    roles: list[str] = field(default_factory=list)
    panels: dict[str, list[str]] = field(default_factory=dict)  # data URIs of each, of those that were decoded
    aspect: float = 1.0  # width by height, of the panels

    @property
    def title(self) -> str:
        return next((scored.image for scored in self.scored.values()), self.file)

    @property
    def defect(self) -> str:
        return next((scored.defect for scored in self.scored.values()), "")

    @property
    def scale(self) -> float:
        """How many times as wide as a square it is shown: so that areas are equal, but for extreme aspects."""
        return scale_of(self.aspect)

    def standing(self, name: str) -> float | None:
        return self.scored[name].standing if name in self.scored else None

    def image_and_mask(self) -> tuple[str, str]:
        """Data URIs, as of the others below."""
        image, mask, *_ = next(iter(self.panels.values()))
        return image, mask

    def maps_of(self, name: str) -> list[str]:
        """Over the image, and alone: older pictures have no such one."""
        return self.panels[name][2:]

    def said(self, name: str) -> str:
        """What the score by that row is worth; empty where there are no scores."""
        standing = self.standing(name)
        if standing is None:
            return ""
        where, others = ("below", "defective") if self.defect in ("", GOOD) else ("above", "good")
        return f"scored {where} {100 * standing:.0f} % of the {others} pictures"

    def decode(self, skipped: list[Damaged]) -> bool:
        """Make the panels; False where no picture is left: those that are damaged go, and are named in `skipped`."""
        for name, path in list(self.pictures.items()):
            try:
                panels = _panels(path)
                self.panels[name] = [_encode(panel) for panel in panels]
                self.aspect = panels[0].width / panels[0].height
            except Exception as error:  # whatever the decoder makes of what is no picture
                note(skipped, path, f"is no picture of a map ({type(error).__name__})")
                del self.pictures[name]
        return bool(self.panels)


def choose(board: Board, names: Mapping[tuple[str, ...], str], most: int) -> list[Case]:
    """Cases with at most `most` pictures in all, worst before best, in turn from all rows and categories.

    One seed of a category is shown, the lowest that the most rows have pictures of.
    """
    by_category = itertools.groupby(_cases(board, names), key=lambda case: (case.dataset, case.category))
    groups = [list(cases) for _, cases in by_category]
    turns: list[tuple[int, int, str, Case]] = []
    for order, own in enumerate(groups):
        for name in names.values():
            known = [(case.standing(name), i) for i, case in enumerate(own)]
            ranked = [own[i] for _, i in sorted((standing, i) for standing, i in known if standing is not None)]
            best = [case for case in reversed(ranked[len(ranked) // 2 :]) if case.defect != GOOD]
            for turn in range(min(MOST_PER_ROW, len(ranked) // OUT_OF)):
                if (ranked[turn].standing(name) or 0) < 1:  # else it has no bad case
                    turns.append((2 * turn, order, f"worst of {name}", ranked[turn]))
                turns += [(2 * turn + 1, order, f"best of {name}", case) for case in best[turn : turn + 1]]
        turns += [(2 * MOST_PER_ROW + i, order, "", case) for i, case in enumerate(own[: 2 * MOST_PER_ROW])]
    chosen: dict[int, Case] = {}
    left = most
    for _, _, role, case in sorted(turns, key=lambda turn: turn[:2]):
        if id(case) not in chosen:
            if len(case.pictures) > left or not case.decode(board.found.skipped):
                continue
            left -= len(case.pictures)
            chosen[id(case)] = case
        if role:
            case.roles.append(role)
    return [case for group in groups for case in sorted(group, key=_hardest) if id(case) in chosen]


def _hardest(case: Case) -> float:
    """The standing by the row that does worst on it."""
    return min((scored.standing for scored in case.scored.values() if scored.standing is not None), default=0)


def _cases(board: Board, names: Mapping[tuple[str, ...], str]) -> list[Case]:
    """All that were saved, of one seed of each category."""
    made = []
    for (dataset, category), part in board.lines.groupby(["dataset", "category"], sort=False):
        by_seed: dict[int, dict[str, RunFolder]] = {}
        for row, seed, run_id in zip(part["row"], part["seed"], part["id"], strict=True):
            folder = board.found.folders[run_id]
            if pictures(folder):
                by_seed.setdefault(int(seed), {})[names[row]] = folder
        if not by_seed:
            continue
        seed = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed))
        folders = {name: by_seed[seed][name] for name in names.values() if name in by_seed[seed]}
        files: dict[str, dict[str, Path]] = {}
        for name, folder in folders.items():
            for file, path in pictures(folder).items():
                files.setdefault(file, {})[name] = path
        scores = {name: _scores(folder, board.found.skipped) for name, folder in folders.items()}
        for file, own in sorted(files.items()):
            position = position_of(file)
            scored = {name: scores[name][position] for name in own if position < len(scores[name])}
            made.append(Case(str(dataset), str(category), file, seed, own, scored))
    return made


def _scores(folder: RunFolder, skipped: list[Damaged]) -> list[Scored]:
    """Of each line of an evaluation's scores.csv; empty where there is none."""
    lines = read_scores(folder, skipped)
    normal = sorted(line.score for line in lines if not line.anomalous)
    defective = sorted(line.score for line in lines if line.anomalous)

    def standing(anomalous: bool, score: float) -> float | None:
        others = normal if anomalous else defective
        if not others:
            return None
        below = (bisect_left(others, score) + bisect_right(others, score)) / 2 / len(others)
        return below if anomalous else 1 - below

    return [Scored(line.path, line.defect, standing(line.anomalous, line.score)) for line in lines]


def _panels(path: Path) -> Sequence[Image.Image]:
    with Image.open(path) as picture:
        count = int(picture.info.get(PANELS, "3"))
        width, rest = divmod(picture.width, count)
        if rest or count < 3:
            raise ValueError("not as many panels of one width as it says")
        return [picture.crop((i * width, 0, (i + 1) * width, picture.height)).convert("RGB") for i in range(count)]


def colour_bar() -> str:
    """The colours of maps from the lowest score to the highest, as CSS."""
    return f"linear-gradient(to right, {', '.join(f'rgb{colour}' for colour in MAP_COLOURS)})"


def scale_of(aspect: float) -> float:
    """By which a picture is wider than a square of its area, within what a page can show."""
    return min(max(aspect**0.5, 0.6), 4.5)


def _encode(panel: Image.Image) -> str:
    """A data URI."""
    aspect = panel.width / panel.height
    width = SIDE * scale_of(aspect)
    panel.thumbnail((width, width / aspect), Image.Resampling.LANCZOS)
    stream = BytesIO()
    panel.save(stream, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{b64encode(stream.getvalue()).decode()}"
