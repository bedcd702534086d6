"""A recipe is searched by what the rungs' records say, and by nothing else."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dskd.config import ConfigError
from harness.gridfile import parse as parse_grid
from harness.gridfile import read_document
from harness.search import Outcome, Search, Trial, choices, chosen_entry, parse, rung_grid, survivors, trials
from tests.conftest import ROOT, save, write_mvtec
from tests.faults.commands import Done, harness

SPACE = {"train.lr": {"times": [0.1, 10]}, "train.weight_decay": {"log": [1e-6, 1e-2]}, "train.ema": [0, 0.9]}


def test_trials_begin_with_the_own_recipe_and_have_the_same_draws() -> None:
    search = Search(trials=8, space=SPACE)
    drawn = trials(search, ["dskd", {"name": "stfpm", "label": "vanilla", "map.sigma": 1.0}])
    assert [trial.label for trial in drawn[7:10]] == ["dskd trial 7", "vanilla trial 0", "vanilla trial 1"]
    assert drawn[0].entry == {"name": "dskd"}
    assert drawn[8].entry == {"name": "stfpm", "map.sigma": 1.0}
    for first, second in zip(drawn[1:8], drawn[9:], strict=True):
        assert first.entry["train.ema"] == second.entry["train.ema"]
        assert first.entry["train.lr"] / 0.005 == pytest.approx(second.entry["train.lr"] / 0.4, rel=1e-2)
        assert 0.0005 <= first.entry["train.lr"] <= 0.05
        assert 1e-6 <= first.entry["train.weight_decay"] <= 1e-2
    assert len({trial.entry["train.lr"] for trial in drawn[1:8]}) == 7
    assert drawn == trials(search, ["dskd", {"name": "stfpm", "label": "vanilla", "map.sigma": 1.0}])


def test_rungs_grow_as_trials_become_fewer() -> None:
    search = Search(trials=12, rungs=3, epochs=8, space=SPACE)
    assert [(search.size(rung), search.length(rung)) for rung in range(3)] == [(12, 2), (6, 4), (3, 8)]
    grid = rung_grid(search, {"name": "x", "axes": {"method": "dskd", "seed": [0]}}, 1, trials(search, "dskd")[:2])
    assert grid["name"] == "rung-2"
    assert grid["axes"]["seed"] == [0]
    assert grid["axes"]["method"][0] == {"name": "dskd", "label": "dskd trial 0", "train.epochs": 4}


def outcome(number: int, rung: int, *values: float, variant: Any = (), method: str = "dskd") -> Outcome:
    return Outcome(Trial(method, number, {"name": method}), rung, variant, (values,))


def test_the_best_go_on_each_by_its_best_variant() -> None:
    search = Search(trials=4, rungs=2, epochs=2, space=SPACE)
    sharp = (("map.sigma", 0.0),)
    first = [
        outcome(0, 0, 0.7, 0.7),
        outcome(1, 0, 0.9),  # a run is missing
        outcome(2, 0, 0.6, 0.6),
        outcome(2, 0, 0.8, 0.9, variant=sharp),
        outcome(3, 0, 0.7, 0.7),
        outcome(0, 0, method="stfpm"),  # all are
    ]
    left = survivors(search, 0, first)
    assert [trial.label for trial in left] == ["dskd trial 2", "dskd trial 0", "stfpm trial 0"]
    second = [outcome(2, 1, 0.8, 0.8), outcome(2, 1, 0.7, 0.7, variant=sharp), outcome(0, 1, 0.6, 0.6)]
    (chosen,) = choices(search, [*first, *second, outcome(0, 1, method="stfpm")])
    assert chosen_entry(chosen, search) == {"name": "dskd", "label": "dskd tuned", "map.sigma": 0.0, "train.epochs": 1}
    assert chosen.mean == pytest.approx(0.85)
    assert math.isnan(chosen.deviation)


def test_spread_over_seeds_can_be_taken_off() -> None:
    search = Search(trials=4, rungs=2, epochs=2, spread=1.0, space=SPACE)

    def of_seeds(number: int, *values: float, variant: Any = ()) -> Outcome:
        return Outcome(Trial("dskd", number, {"name": "dskd"}), 0, variant, tuple((value,) for value in values))

    sharp = (("map.sigma", 0.0),)
    outcomes = [
        of_seeds(0, 0.5, 0.5),
        of_seeds(1, 0.9, 0.7),  # the highest mean
        of_seeds(1, 0.76, 0.74, variant=sharp),
        of_seeds(2, 0.78, 0.76),
        of_seeds(3, 0.95, 0.75),
    ]
    assert [trial.number for trial in survivors(search, 0, outcomes)] == [2, 1]
    (chosen,) = choices(search, outcomes[1:3])
    assert chosen.variant == sharp
    assert search.merit(chosen) == pytest.approx(0.75 - 0.02 / 2**0.5)
    assert [trial.number for trial in survivors(dataclasses.replace(search, spread=0.0), 0, outcomes)] == [3, 1]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "search.space: it is empty"),
        ({"space": {"train.lrr": [1, 2]}}, "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ({"space": {"train.epochs": [1, 2]}}, "train.epochs is set by the rungs"),
        ({"space": {"train.lr": [1]}}, "train.lr has no choice"),
        ({"space": {"train.lr": {"times": [2, 1]}}}, "train.lr: {'times': [2, 1]} is not possible"),
        ({"space": {"train.ema": [0, 0.9]}}, "trials: 16 are more than the 3 that `space` gives"),
        ({"space": {"train.weight_decay": {"times": [1, 2]}}}, "`times` needs a number above 0 to multiply, not 0.0"),
        ({"space": SPACE, "epochs": 3}, "epochs: 3 in the last of 3 rungs leaves no whole epoch for the first one"),
        ({"space": SPACE, "spread": -1}, "search.spread: -1.0 is not possible; write 0 or more"),
        ({"space": SPACE, "trials": 3}, "trials: 3 leaves none for the last of 3 rungs; write 4 or more"),
        ({"space": {"map.sigma": [1, 2]}}, "map.sigma is set by `search`; leave it out of axes"),
    ],
)
def test_what_cannot_be_searched_is_refused(section: dict[str, Any], message: str) -> None:
    document = {"name": "x", "axes": {"method": ["dskd"]}, "defaults": {"map": {"sigma": 2}}, "search": section}

    def begin() -> None:
        search, rest = parse(document)
        trials(search, rest["axes"]["method"])

    with pytest.raises(ConfigError, match=re.escape(message)):
        begin()


def change(path: Path, number: int) -> None:
    """One pixel, by which the picture is no other's."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] = number
    save(path, pixels)


@pytest.mark.usefixtures("without_workers")
def test_the_choice_is_of_the_records_alone(tmp_path: Path, write_grid: Callable[..., Path]) -> None:
    """What it is reported on has no part in it: with its labels shuffled the choice is the same, and nothing is
    trained again.
    """
    report = write_mvtec(tmp_path / "report", "leather", train=7, good=4, defects=4)
    file = write_grid(write_mvtec(tmp_path / "data"), evaluate=[{}, {"map.sigma": 1}])
    document = yaml.safe_load(file.read_text())
    space = {"train.lr": {"times": [0.1, 2]}, "train.weight_decay": {"log": [1e-6, 1e-2]}}
    del document["defaults"]["train.epochs"]
    document["search"] = {"trials": 2, "rungs": 2, "epochs": 2, "space": space}

    def search(entry: Any, *options: str) -> Done:
        document["search"]["report"] = [entry]
        file.write_text(yaml.safe_dump(document))
        return harness("search", file, "--out", tmp_path / "runs", "--devices", "cpu", *options)

    refused = search({"name": "folder", "root": str(tmp_path / "data")})
    assert refused.code == 2
    assert "search.report: folder and the data that choose have 12 images in common" in refused.err
    assert not (tmp_path / "runs").exists()

    document["search"]["spread"] = 1
    refused = search({"name": "folder", "root": str(report)})
    assert (refused.code, refused.out) == (2, "")
    assert "search.spread: a spread over seeds needs two of them or more; write axes.seed: [0, 1, 2]" in refused.err
    del document["search"]["spread"]

    # Its textures are those of the data that choose, so each picture gets a pixel of its own.
    for number, path in enumerate(sorted(report.glob("leather/*/*/*.png"))):
        if "ground_truth" not in path.parts:
            change(path, number)
    tried = search({"name": "folder", "root": str(report)}, "--dry-run")
    assert (tried.code, tried.err) == (0, "")
    assert "2 trials of 1 epoch, 1 trial of 2 epochs" in tried.out
    assert not (tmp_path / "runs").exists()
    done = search({"name": "folder", "root": str(report)})
    assert done.code == 0, done.out + done.err
    choice = tmp_path / "runs" / "tiny" / "choice.yaml"
    chosen = choice.read_text()
    (entry,) = yaml.safe_load(chosen)["method"]
    assert yaml.safe_load(chosen)["chosen_on"] == ["folder"]
    assert entry["name"] == "stfpm"
    assert "rung 2 of 2: 1 trial of 2 epochs" in done.out
    assert "image_size" not in done.out  # what stands below a leaderboard

    for number in range(4):  # the good ones are the defective ones now
        first, second = (report / "leather" / "test" / kind / f"{number:03d}.png" for kind in ("good", "hole"))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    again = search({"name": "folder", "root": str(report)})
    assert again.code == 0, again.out + again.err
    assert choice.read_text() == chosen
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")} == records


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "searches").glob("*.yaml")), ids=lambda path: path.name)
def test_searches_that_ship(path: Path) -> None:
    search, rest = parse(read_document(path)[1])
    first = trials(search, rest["axes"]["method"])
    grid = rung_grid(search, rest, 0, first)
    assert parse_grid(grid).name == "rung-1"
    assert rest["name"] == path.stem
    assert len(grid["axes"]["method"]) == 3 * search.trials


def test_a_search_is_no_grid() -> None:
    with pytest.raises(ConfigError, match="this is a search file; write `harness search`"):
        parse_grid({"name": "x", "axes": {}, "search": {}})
