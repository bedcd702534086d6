"""The report: what its charts and pictures hold, that the page needs nothing else, and what is refused."""

import csv
import json
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("altair", reason="pip install 'dskd-harness[report]'")

from dskd.config import ConfigError
from harness.cli import app
from harness.leaderboard import figures, gallery, inventory, plots
from harness.leaderboard.evidence import labels
from harness.leaderboard.frame import load
from harness.leaderboard.table import Board, Table, boards
from harness.records import Results
from tests.leaderboard.synthetic import AT, DEVICE, ENVIRONMENT, fail, write_results

CATEGORIES = ("cloth", "metal", "wood", "stone", "tile", "grid")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three models, six categories, three seeds, with pictures; one run is missing, one failed, one is damaged."""
    made = write_results(tmp_path_factory.mktemp("runs") / "demo", categories=CATEGORIES, maps=6)
    lost = next(r for r in load([made.folder]).evaluations if _place(r) == ("stfpm", "tile", 1))
    (made.run_folder(lost.id).path / "record.json").unlink()
    fail(made)
    (made.folder / "torn").mkdir()
    (made.folder / "torn" / "record.json").write_text("{")
    return made


def _place(record) -> tuple[str, str, int]:
    train = record.spec["train"]
    return train["method"]["name"], train["data"]["category"], train["seed"]


@pytest.fixture(scope="module")
def board(results: Results) -> Board:
    return boards(load([results.folder]))[0]


def report(*arguments: object) -> str:
    """What the command says; a ConfigError is raised as it is."""
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    said = report(results.folder, "--out", path, "--title", "A <b>title</b>", "--metric", "image_auroc,aupro_0.30")
    assert "MB, open it in a browser" in said
    assert re.search(
        r"^dskd leads on set beyond noise: image AUROC .+ points over .+ \(6 categories, ", said, re.MULTILINE
    )
    assert "torn" in said
    return path.read_text()


def test_page_needs_nothing_else_and_runs_nothing_that_it_quotes(page: str) -> None:
    tags = _Page(page).tags
    links = [attributes[key] for _, attributes in tags for key in ("src", "href") if key in attributes]
    assert links
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "base")]
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "the loss became &lt;nan&gt;" in page
    assert page.count("<script") == page.count("</script>") == 4


def test_page_is_accessible_by_its_texts(page: str) -> None:
    tags = _Page(page).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert images
    assert all(len(image["alt"]) > 20 for image in images)
    targets = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    assert targets <= {attributes.get("id") for _, attributes in tags}
    charts = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    drawn = [chart for each in charts.values() for chart in each.values() if "missing" not in chart]
    assert all(chart["description"] for chart in drawn)
    assert {key.rsplit("-", 1)[0] for key in charts} == {
        *("scatter", "heatmap", "learning", "loss", "images", "seconds", "differences", "ranks")
    }


def test_holes_collapses_and_failures_are_told(page: str, board: Board) -> None:
    names = labels(list(board.parts()))
    cells = figures._cells(board, names, "set", "image_auroc").set_index(["name", "category"])
    assert cells.loc[("stfpm", "tile"), "text"].endswith(" [2/3]")
    grid = board.lines[(board.lines["method"] == "stfpm") & (board.lines["category"] == "tile")]
    assert cells.loc[("stfpm", "tile"), "value"] == pytest.approx(grid["image_auroc"].mean())
    assert "1 failed and are missing above" in page
    assert "1 damaged record skipped" in page
    assert "[17/18]" in page


def test_pareto_front_against_brute_force() -> None:
    draw = pd.Series(range(40)).sample(40, random_state=0).reset_index(drop=True)
    points = pd.DataFrame({"speed": draw % 13, "value": (draw * 7) % 11, "name": draw.astype(str)})
    front = plots.pareto(points)
    pairs = set(zip(points["speed"], points["value"], strict=True))

    def beaten(speed: int, value: int) -> bool:
        return any(s >= speed and v >= value and (s, v) != (speed, value) for s, v in pairs)

    assert list(zip(front["speed"], front["value"], strict=True)) == sorted(p for p in pairs if not beaten(*p))


def test_curves_are_means_over_seeds_and_whole_categories() -> None:
    lines = [("a", c, s, e, 10 * s + e + (100 if c == "y" else 0)) for c in "xy" for s in (0, 1) for e in (1, 2)]
    curves = pd.DataFrame(lines, columns=["name", "category", "seed", "epoch", "value"]).assign(images=5.0, seconds=0.5)
    hole = curves.drop(curves.index[(curves.category == "y") & (curves.seed == 1) & (curves.epoch == 2)])
    table = figures._over_seeds(hole).set_index(["category", "epoch"])
    assert table.loc[("x", 1), ["value", "low", "high"]].tolist() == [6, 1, 11]
    assert table.loc[("", 1), "value"] == 56  # both seeds have both categories
    assert table.loc[("", 2), "value"] == 52  # seed 1 lacks one: it is left out, not averaged over less


def test_critical_difference_diagram_needs_enough(board: Board) -> None:
    none = Table("differences", "", [], [], [])
    made = {(f.kind, f.metric): f for f in figures.figures(board, labels(list(board.parts())), none)}
    ranks = made["ranks", "image_auroc"].chart
    assert ranks is not None
    assert "Average ranks by image AUROC: dskd 1." in ranks.to_dict()["description"]
    few = boards(board.found, where=["category!=tile"])[0]
    made = {(f.kind, f.metric): f for f in figures.figures(few, labels(list(few.parts())), none)}
    assert made["ranks", "image_auroc"].chart is None
    assert made["ranks", "image_auroc"].missing.endswith("here are 3 and 5.")


def test_gallery_shows_the_worst_and_the_best_and_keeps_to_its_budget(board: Board) -> None:
    names = labels(list(board.parts()))
    cases = gallery.choose(board, names, 1000)
    (worst,) = [c for c in cases if c.category == "cloth" and "worst of stfpm" in c.roles][:1]
    run = next(r for r in board.found.evaluations if _place(r) == ("stfpm", "cloth", 0))
    with board.found.folders[run.id].scores.open() as stream:
        lines = list(csv.DictReader(stream))
    saved = [int(path.name[:4]) for path in board.found.folders[run.id].maps.iterdir()]

    def standing(line: dict[str, str]) -> float:
        others = [float(o["score"]) for o in lines if o["anomalous"] != line["anomalous"]]
        sign = 1 if line["anomalous"] == "1" else -1
        return sum(sign * float(line["score"]) > sign * other for other in others) / len(others)

    assert worst.standing("stfpm") == pytest.approx(standing(lines[int(worst.file[:4])]))
    hardest = min(standing(lines[position]) for position in saved)
    roles = [c for c in cases if c.category == "cloth" and "worst of stfpm" in c.roles]
    assert min(c.standing("stfpm") for c in roles) == pytest.approx(hardest)
    assert worst.defect in ("good", "torn_edge")
    few = gallery.choose(board, names, 40)
    assert 30 < sum(len(case.pictures) for case in few) <= 40
    assert {case.category for case in few} == set(CATEGORIES)  # in turn, not one after the other
    assert not gallery.choose(board, names, 0)


def test_tables_of_speed_cost_and_inputs(board: Board) -> None:
    speed = inventory.speed(board)
    assert [key[0] for key, _ in speed.rows] == ["reverse_distillation", "stfpm", "dskd"]  # the fastest first
    assert [column.key for column in speed.columns] == ["images_per_s", "best_batch_size"]  # no empty ones
    cost = inventory.cost(board)
    assert cost.rows[0][1]["train_s"].value == 12.5
    assert ("set", "cloth", "hash-cloth") in dict(inventory.inputs(board.found, board.lines).rows)
    ((key, cells),) = inventory.environments(board.found, board.lines).rows
    assert key[0] == ENVIRONMENT["commit"]
    assert str(DEVICE["device"]) in key[1]
    assert (cells["runs"].value, cells["from"].value) == (53, AT[:16])


def test_figures_for_papers(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    one = ["--metric", "image_auroc", "--pictures", 0, "--figures", folder]
    assert "8 figures" in report(results.folder, "--out", tmp_path / "a.html", *one)
    names = {path.name for path in folder.iterdir()}
    assert len(names) == 16
    assert (folder / "ranks-set-image_auroc.pdf").read_bytes().startswith(b"%PDF")
    assert "critical difference" in (folder / "ranks-set-image_auroc.svg").read_text()
    assert "No pictures were saved" in (tmp_path / "a.html").read_text()


def test_bad_input_is_one_clear_line(results: Results, tmp_path: Path) -> None:
    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(ConfigError, match=message):
            report(*arguments, *([] if "--out" in arguments else ["--out", tmp_path / "page.html"]))

    refused("--pictures: -1 is not possible; write 0 or more", results.folder, "--pictures", -1)
    refused("--out: .* is a folder; write a file such as", results.folder, "--out", tmp_path)
    refused("--by: the page has every category apart already", results.folder, "--by", "method,category")
    refused(
        "--metric: unknown metric 'image_aurok'; did you mean 'image_auroc'", results.folder, "--metric=image_aurok"
    )
    refused("is not a folder", tmp_path / "gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("no finished evaluation", empty)
    (tmp_path / "file").write_text("")
    refused("cannot be written", results.folder, "--out", tmp_path / "file" / "page.html", "--pictures", 0)


def test_mixed_protocols_are_parts_of_their_own(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    for side in (64, 96):
        write_results(mixed, ("dskd",), ("cloth",), 2, image_size=side)
    with pytest.raises(ConfigError, match="mixed protocols: image_size is 64 and 96"):
        report(mixed, "--out", tmp_path / "mixed.html")
    report(mixed, "--out", tmp_path / "mixed.html", "--allow-mixed")
    text = (tmp_path / "mixed.html").read_text()
    assert text.count('<section id="scores"') == 1
    assert "<h2>image_size 64</h2>" in text
    assert "<h2>image_size 96</h2>" in text


def test_strips_keep_their_aspect_and_are_named_by_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "strips"
    write_results(folder, ("dskd",), ("cloth",), 2, maps=4, side=(96, 256), image_size=(96, 256))
    write_results(folder, ("dskd",), ("cloth",), 2, image_size=64)
    with pytest.raises(ConfigError, match="mixed protocols: image_size is 64 and 96x256"):
        report(folder, "--out", tmp_path / "strips.html")
    report(folder, "--out", tmp_path / "strips.html", "--where", "image_size=96x256")
    text = (tmp_path / "strips.html").read_text()
    assert "image_size 96x256" in text
    pictures = [
        Image.open(BytesIO(b64decode(found))) for found in re.findall(r'"data:image/webp;base64,([^"]+)"', text)
    ]
    assert len(pictures) >= 3
    assert all(picture.width / picture.height == pytest.approx(256 / 96, rel=0.02) for picture in pictures)
    assert "--aspect: 2.6667" in text
    found = boards(load([folder]), where=["image_size=96x256"])[0]
    assert set(inventory.speed(found).rows[0][1]) >= {"images_per_s"}  # the bench of that size is the row's


def test_missing_libraries_are_named(results: Results, tmp_path: Path) -> None:
    program = "import sys; sys.modules['altair'] = None; from harness.cli import main; main()"
    command = [sys.executable, "-c", program, "report", str(results.folder), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = "error: altair is not installed; pip install 'dskd-harness[report]' brings it\n"
    assert (done.returncode, done.stderr) == (2, said)
