"""What who knows other command lines expects of this one: positions, versions, completion, next steps, widths."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.table import Table as RichTable

from harness.cli.common import console
from harness.cli.folded import print_folded
from harness.leaderboard.render import print_sections
from harness.leaderboard.sections import Section
from harness.leaderboard.table import Cell, Column, Table
from tests.faults.commands import harness, refusal

WriteGrid = Callable[..., Path]


def test_a_grid_is_named_by_position_or_by_option(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree)
    by_position, by_option = harness("plan", grid, "--list"), harness("plan", "--grid", grid, "--list")
    assert by_position.code == by_option.code == 0, by_position
    assert by_position.out.splitlines()[0] == by_option.out.splitlines()[0]
    assert "stfpm resnet18 data/cloth seed 0" in by_position.out.splitlines()[0]
    for ways in ([grid, "--grid", grid], [grid, "-g", "other.yaml"]):
        assert f"two grid files are named, {grid} and --grid" in refusal("run", *ways)
    for command in ("run", "plan", "profile", "submit"):
        assert "no grid file is named; write its path" in refusal(command)


def test_options_for_the_jobs_stay_apart_from_the_grid(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree)
    for way in ([grid], ["--grid", grid]):
        done = harness("submit", *way, "--dry-run", "--", "--retries", "3")
        assert f"set -- {grid} --retries 3\n" in done.out, done
    assert "no grid file is named" in refusal("submit", "--dry-run", "--", "--retries", "3")


def test_harness_alone_shows_help_and_its_version_those_of_what_it_stands_on() -> None:
    alone, asked = harness(), harness("--help")
    assert alone.code == 0
    assert alone.out.split() == asked.out.split()
    version = harness("--version")
    assert version.code == 0
    assert version.out.startswith("harness 0.")
    assert all(word in version.out for word in ("torch 2.", "timm 1.", "Python 3."))
    assert version.out.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [("harness pl", {"plan"}), ("harness run --shar", {"--shard"}), ("harness leaderboard --me", {"--metric"})],
)
def test_the_shell_completes(words: str, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_HARNESS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert set(harness().out.split()) == found


def test_completion_does_not_clutter_the_help() -> None:
    assert harness("--help").out.count("-completion") == 2
    for command in ("run", "leaderboard"):
        assert "-completion" not in harness(command, "--help").out


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
def test_tables_cut_nothing_off(width: int) -> None:
    names = ["different_family_student", "stfpm (common)", "mine"], ["tf_efficientnet_lite0", "resnet18", "r"]
    numbers, prose = ["123456", "1", "22"], ["a longer text that says what this row is about", "", "short"]
    table = RichTable("method", "backbone", title="names")
    for column in ("runs", "estimated time", "to do"):
        table.add_column(column, justify="right")
    table.add_column("what it is")
    for row in zip(*names, numbers, numbers, numbers, prose, strict=True):
        table.add_row(*row)
    terminal = console()
    terminal.width = width
    with terminal.capture() as captured:
        print_folded(terminal, table, 2)
    lines = captured.get().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert sum(cell == "123456" for row in cells for cell in row) == 3
    columns = ["".join(column).replace(" ", "") for column in itertools.zip_longest(*cells, fillvalue="")]
    for word in (*names[0], *names[1], prose[0]):  # line by line below each other
        assert any(word.replace(" ", "") in column for column in columns), word


def test_a_dry_run_says_how_much_it_would_do_apart_from_the_scripts(write_grid: WriteGrid, tree: Path) -> None:
    done = harness("submit", write_grid(tree, axes={"seed": [0, 1, 2]}), "--dry-run", "--shards", "2")
    assert done.out.startswith("#!/bin/bash")
    first, missing, last = done.err.splitlines()
    assert first.startswith("tiny: 3 runs in 2 shards, about ")
    assert "time limit 04:00:00" in first
    assert missing.startswith("no partition and no account is set: ")
    assert last.startswith("nothing was submitted")
    options = ["--sbatch", "partition=long", "--sbatch", "account=us", "--sbatch", "mail-user=a b"]
    done = harness("submit", write_grid(tree), "--dry-run", *options)
    assert len(done.err.splitlines()) == 2
    assert '#SBATCH --mail-user="a b"\n' in done.out


@pytest.mark.usefixtures("without_workers")
def test_a_run_says_how_to_go_on(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "my runs"
    done = harness("run", write_grid(tree), "--out", out, "--devices", "cpu")
    assert done.code == 0, done
    assert f"next: harness report '{out}/tiny' " in done.out
    assert f"harness leaderboard '{out}/tiny' --table all" in done.out


def test_a_terminal_that_is_very_narrow_cuts_no_number() -> None:
    cell = Cell(0.492, 0.1, 0.9, 0.2, 3, 5, degenerate=4, without_degenerate=0.641)
    columns = [Column("a", "set\nimage AUROC", "share", ("sd",)), Column("b", "images/s", "speed")]
    names = ("reverse_distillation", "tf_efficientnet_lite0", "map.scale_fuse=mul")
    rows = [(names, {"a": cell, "b": Cell(1234567.0)}), (tuple("abc"), {"a": cell})]
    board = Table("scores", "Scores", ["method", "backbone", "variant"], columns, rows)
    for width in (40, 60, 80):
        terminal = console()
        terminal.width = width
        with terminal.capture() as captured:
            print_sections(terminal, [Section("", [board], {}, [])])
        assert captured.get().count("49.2 ± 40.0 [3/5] †4 (64.1)") == 2, captured.get()
        assert "1,234,567" in captured.get()
