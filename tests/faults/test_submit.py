"""What `harness submit` is given is refused in one line or means what it says. Rows: faults.md, area L."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.launch import slurm
from tests.conftest import ROOT
from tests.faults.commands import harness, refusal

WriteGrid = Callable[..., Path]


def words(line: str) -> list[str]:
    """The words of a `#SBATCH` line as sbatch reads it (src/sbatch/opt.c): quotes group, a backslash takes the next
    sign as it is, in quotes too, and a `#` outside of quotes begins a comment.
    """
    found, word, quote, place = [], None, "", 0
    while place < len(line):
        sign = line[place]
        if sign == "\\":
            place += 1
            word = (word or "") + line[place : place + 1]
        elif quote:
            quote, word = ("", word) if sign == quote else (quote, (word or "") + sign)
        elif sign in "\"'":
            quote, word = sign, word or ""
        elif sign.isspace():
            found, word = found + ([word] if word is not None else []), None
        elif sign == "#":
            break
        else:
            word = (word or "") + sign
        place += 1
    assert not quote, line
    return found + ([word] if word is not None else [])


def options_of(script: str) -> list[str]:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [word for line in lines for word in words(line.removeprefix("#SBATCH "))]


LINE = "a\ntouch /tmp/pwned"

REFUSED = [
    pytest.param(["--sbatch", "nodes=a"], "--sbatch nodes: 'a' is not possible", id="nodes-a-word"),
    pytest.param(["--sbatch", "signal=USR1@x"], "--sbatch signal: 'USR1@x' is not possible", id="signal-at-a-word"),
    pytest.param(["--out", LINE], "--out: ", id="newline-in-out"),
    pytest.param(["--sbatch", "comment=a b"], "--sbatch: comment is for harness submit to write", id="its-comment"),
    pytest.param(["--sbatch", f"comment={LINE}"], "--sbatch: ", id="newline-in-an-option"),
    pytest.param(["--sbatch", "comment=a\x1bb"], "--sbatch: ", id="control-character-in-an-option"),
    pytest.param(["--sbatch", "comment=a\udcffb"], "--sbatch: ", id="option-not-utf-8"),
    pytest.param(["--out", "runs\udcff"], "--out: ", id="out-not-utf-8"),
    pytest.param(["--out", "50%j"], "has % or", id="pattern-of-slurm-in-out"),
    pytest.param(["--out", "a\\b"], "has % or", id="backslash-in-out"),
    pytest.param(["--only", f"category={LINE}"], "--only: ", id="newline-in-only"),
    pytest.param(["--plugin", f"{LINE}.py"], "--plugin: ", id="newline-in-a-plug-in"),
    pytest.param(["--", "--checkpoint-every", "5\nrm"], "RUN OPTIONS: ", id="newline-in-run-options"),
    pytest.param(["--sbatch", "nodes=0"], "--sbatch nodes: '0'", id="nodes-none"),
    pytest.param(["--sbatch", "nodes=" + "9" * 5000], "--sbatch nodes: '999", id="nodes-of-5000-digits"),
    pytest.param(["--sbatch", "time=" + "9" * 5000], "--sbatch time: '999", id="time-of-5000-digits"),
    pytest.param(["--sbatch", "time=soon"], "--sbatch time: 'soon'", id="time-a-word"),
    pytest.param(["--sbatch", "signal=USR1@" + "9" * 5000], "--sbatch signal: 'USR1@999", id="signal-of-5000-digits"),
    pytest.param(["--shards", "²"], "--shards: '²' is not possible", id="shards-no-decimal"),
    pytest.param(["--shards", "9" * 5000], "--shards: '999", id="shards-of-5000-digits"),
    pytest.param(["--shards", "999999999"], "--shards: '999999999'", id="shards-absurd"),
    pytest.param(["--grid", "/dev/null"], "--grid: /dev/null is no regular file", id="grid-that-jobs-cannot-read"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "wet"])
def test_refused_before_anything_is_written(
    options: list[str],
    message: str,
    dry: bool,
    write_grid: WriteGrid,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/sh\ntouch '{tmp_path}/called'\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path / "work")
    assert message in refusal("submit", "--grid", write_grid(tree), *(["--dry-run"] if dry else []), *options)
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"#!/bin/bash\n#SBATCH --nodes=1\n", id="no-command"),
        pytest.param(b"#!/bin/bash\n\xff\n", id="no-text"),
    ],
)
def test_a_batch_script_that_is_none(text: bytes, write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "own.sh"
    script.write_bytes(text)
    assert "--script: " in refusal("submit", "--grid", write_grid(tree), "--dry-run", "--script", script)


@pytest.mark.parametrize("name", ["my runs", "it's", 'a"b', "a#b", "a b'c\"d#e", "a;b$(c)`d`&", "plain"])
def test_paths_reach_slurm_and_the_shell_as_they_are(
    name: str, write_grid: WriteGrid, tree: Path, tmp_path: Path
) -> None:
    """Row: a path with a space was written unquoted into `#SBATCH --output=`."""
    out, grid = tmp_path / name, tmp_path / f"{name}.yaml"
    write_grid(tree).rename(grid)
    options = ["--sbatch", f"comment-x={name}", "--sbatch", "time=UNLIMITED"]
    done = harness("submit", "--grid", grid, "--out", out, "--dry-run", *options)
    assert done.code == 0, done.err
    sweep, last = re.split(r"(?m)^(?=#!/bin/bash$)", done.out)[1:]
    assert f"--output={out}/tiny/slurm/%A_%a.out" in options_of(sweep)
    assert f"--comment-x={name}" in options_of(sweep)
    assert f"--output={out}/tiny/leaderboard.txt" in options_of(last)
    head = sweep.partition('cd "$SLURM_SUBMIT_DIR"')[0]
    shell = subprocess.run(["bash", "-c", f'{head}\nprintf "%s\\0" "$OUT" "$1"'], capture_output=True, text=True)
    assert shell.stdout.split("\0")[:2] == [str(out), str(grid)]


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), max_size=30))
def test_any_value_is_one_word_to_sbatch(value: str) -> None:
    (option,) = [f"#SBATCH --mail-user={text}" for text in slurm.parse_options([f"mail-user={value}"]).values()]
    assert words(option.removeprefix("#SBATCH ")) == [f"--mail-user={value.strip()}"]
    assert slurm.options_of(f"{option}\necho\n") == {"mail-user": slurm.directive(value.strip())}


def test_options_of_a_script_keep_their_quotes() -> None:
    script = '#!/bin/bash\n#SBATCH --comment="a # b"  # said\n#SBATCH --nodes=\'2\'\n#SBATCH --signal "USR1@90"\necho\n'
    found = slurm.options_of(script)
    assert found == {"comment": '"a # b"', "nodes": "'2'", "signal": '"USR1@90"'}
    assert slurm.gpus_of(found | {"gpus": "4"}) == 2
    assert slurm.warning_s(found["signal"]) == 90


def test_the_shipped_scripts_are_as_their_options_say() -> None:
    for path in (ROOT / "slurm").glob("*.sh"):
        text = path.read_text()
        found = slurm.options_of(text)
        assert [f"--{key}={value}" if value is not None else f"--{key}" for key, value in found.items()] == options_of(
            text
        )
