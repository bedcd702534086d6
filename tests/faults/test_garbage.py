"""Structured garbage for every command: near-real grids, records and results folders with anything at any place.

Asserted is just this: a command ends within 30 s, with exit code 0, 1 or 2; with 2 it says one line, and never a
traceback. The suite runs the same few hundred cases every time; the slow tests run as many as HARNESS_GARBAGE says, new
ones each time: `HARNESS_GARBAGE=5000 pytest -m slow tests/faults/test_garbage.py`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import write_mvtec
from tests.faults.commands import harness
from tests.faults.test_grids import BOMB, MERGED, within
from tests.leaderboard.synthetic import fail, write_results

# Without shrinking: a failure is told within the time that the cases take.
COMMON = {"deadline": None, "phases": [Phase.explicit, Phase.generate], "suppress_health_check": list(HealthCheck)}
QUICK = settings(derandomize=True, max_examples=60, **COMMON)
MANY = settings(database=None, max_examples=int(os.environ.get("HARNESS_GARBAGE", "500")), **COMMON)

AXES = {
    "method": ["stfpm", {"name": "dskd", "train.epochs": 1}],
    "backbone": ["resnet18"],
    "dataset": [{"name": "folder", "root": "data", "categories": ["cloth"]}],
    "seed": [0, 1],
}
GRID = {
    "name": "tiny",
    "axes": AXES,
    "defaults": {
        "image_size": 32,
        "weights": "random",
        "train": {"epochs": 1},
        "precision": "fp32",
        "evaluate.at": [1],
    },
    "include": [{"method": "reverse_distillation", "seed": 7}],
    "exclude": [{"method": "dskd", "seed": [1]}],
    "overrides": [{"when": {"method": "stfpm"}, "set": {"map.sigma": 2, "crop": 0}}],
    "evaluate": [{}, {"map.scale_fuse": "mul", "score": "mean", "aupro_limits": [0.3]}],
    "bench": {"batch_sizes": [1, 2], "seconds": 0.5, "compile": [False]},
    "save": {"scores": True, "maps": 2, "weights": False},
    "tracking": None,
}
# No "/" and no "~": a data set's root must not be the machine's.
WORDS = ["", "a", "stfpm", "resnet18", "common", "all", "imagenet", "random", "auto", "name", "..", ".", "nan", "1e3"]
WORDS += ["\x1b]0;x\x07", "[/x]", "=1+1", "\u202e", "\N{LATIN SMALL LETTER E}\u0301", "\U0001d54f", "x" * 300, "a\nb"]
WORDS += ["a\tb", "a b", "<<", "2026-13-45", "0b_", "-1"]
words = st.sampled_from(WORDS)
texts = words | st.text(st.characters(exclude_characters="/~$", exclude_categories=["Cs"]), max_size=8)
numbers = st.floats() | st.sampled_from(
    [0, 1, -1, 2, 31, 32, 2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308]
)
scalars = st.none() | st.booleans() | numbers | texts
foreign = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(0, 3), inner, max_size=3)
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple, change: Callable[[Any], Any]) -> Any:
    """A copy of the document with what is at the path replaced; `...` takes it out."""
    if not path:
        return change(value)
    key, *rest = path
    inner = changed(value[key], tuple(rest), change)
    if isinstance(value, dict):
        return {name: inner if name == key else old for name, old in value.items() if name != key or inner is not ...}
    return [inner if i == key else old for i, old in enumerate(value) if i != key or inner is not ...]


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three of its places replaced, taken out, renamed or added to."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document))))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap"]))
        value = draw(foreign)
        key = draw(texts)

        def change(old: Any, kind: str = kind, value: Any = value, key: str = key) -> Any:
            if kind == "remove":
                return ...
            if kind == "wrap":
                return [old] if key else {"name": old}
            if kind == "add" and isinstance(old, dict):
                return {**old, key: value}
            if kind == "add" and isinstance(old, list):
                return [*old, value]
            return value

        document = changed(document, path, change) if path or kind != "remove" else value
    return document


@st.composite
def spoiled(draw: st.DrawFn, text: str) -> bytes:
    """A text cut off, with bytes put into it, or with a part repeated."""
    content = text.encode()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    match draw(st.sampled_from(["cut", "bytes", "repeat"])):
        case "cut":
            return content[:start]
        case "bytes":
            return content[:start] + draw(st.binary(max_size=6)) + content[start:]
    return content[:end] + content[start:]


class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


WHOLE = [
    BOMB,
    MERGED,
    "[" * 5000,
    "- " * 5000,
    "{" * 5000,
    "",
    "null",
    "a",
    "- 1",
    "--- a\n--- b\n",
    "a: *a",
    "\ufeffname: x",
]
plain = mutated(GRID).map(lambda document: yaml.dump(document, Dumper=Dumper, allow_unicode=True).encode())
bent = mutated(GRID).map(lambda document: json.dumps(document)).flatmap(spoiled)
GRIDS = plain | plain | plain | bent | st.sampled_from(WHOLE).map(str.encode) | st.binary(max_size=40)


class ReachedError(Exception):
    """What would begin to work."""


def never(*_: object, **__: object) -> None:
    raise ReachedError


def call(*arguments: object) -> None:
    try:
        with within(30):
            done = harness(*arguments)
    except ReachedError:
        return
    assert done.code in (0, 1, 2), done
    assert "Traceback" not in done.err, done
    if done.code == 2:
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
        assert len(done.err) < 2500, done


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and home, in which nothing trains: every way to begin is closed."""
    write_mvtec(tmp_path / "data", train=2, good=1, defects=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("harness.launch.supervisor.supervise", never)
    monkeypatch.setattr("harness.launch.schedule.phases", never)
    return tmp_path


def of_grids(test: Callable) -> Callable:
    return given(content=GRIDS, command=st.sampled_from(["plan", "run", "submit", "profile", "status", "leaderboard"]))(
        test
    )


def check_grid(content: bytes, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "grid.yaml"
    path.write_bytes(content)
    try:
        match command:
            case "plan":
                call("plan", "--grid", path, "--devices", "cpu", "--list")
            case "run":
                call("run", "--grid", path, "--devices", "cpu")
            case "submit":
                call("submit", "--grid", path, "--dry-run")
            case "profile":
                with monkeypatch.context() as patch:
                    patch.setattr("harness.launch.schedule.remaining", never)
                    call("profile", "--grid", path, "--devices", "cpu")
            case _:
                call(command, path)
    finally:
        shutil.rmtree(folder / "runs", ignore_errors=True)


@QUICK
@of_grids
def test_grids(place: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, command: str) -> None:
    check_grid(content, command, place, monkeypatch)


@pytest.mark.slow
@MANY
@of_grids
def test_many_grids(place: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, command: str) -> None:
    check_grid(content, command, place, monkeypatch)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_results(tmp_path_factory.mktemp("garbage") / "tiny", ("stfpm", "dskd"), ("cloth",), 2, maps=2, side=16)
    fail(made)
    (made.folder / "plan.json").write_text("{}")
    for name in ("shards/1.json", "slurm/1.json"):
        (made.folder / name).parent.mkdir()
        (made.folder / name).write_text("{}")
    return made.folder


FORMATS = ("table", "markdown", "csv", "latex", "json")
READERS = [
    *((lambda folder, form=form: call("leaderboard", folder, "--allow-mixed", "--format", form)) for form in FORMATS),
    lambda folder: call("leaderboard", folder, "--table", "all"),
    lambda folder: call("compare", folder, folder),
    lambda folder: call("status", folder),
    lambda folder: call("plan", "--grid", folder.parent / "grid.yaml", "--out", folder.parent, "--devices", "cpu"),
    lambda folder: call("run", "--grid", folder.parent / "grid.yaml", "--out", folder.parent, "--devices", "cpu"),
    *((lambda folder, n=n: call("show", sorted(folder.iterdir())[n])) for n in range(4)),
]
REPORT = lambda folder: call("report", folder, "--out", folder.parent / "page.html")  # noqa: E731
reads = st.sampled_from([*READERS * 3, REPORT])


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def spoil_record(folder: Path, data: st.DataObject) -> None:
    """One or two JSON files of the folder, changed as data or as bytes."""
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([folder / name for name in files_of(folder) if name.endswith(".json")]))
        text = path.read_text(errors="replace")
        if data.draw(st.booleans() | st.just(True)):
            try:
                document = json.loads(text)
            except ValueError:
                continue
            path.write_text(json.dumps(data.draw(mutated(document))))
        else:
            path.write_bytes(data.draw(spoiled(text)))


ODD = {
    "folder": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("gone"),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\x00\xff\x89PNG"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "text": lambda path: path.write_text("a,b\n1\nepoch,loss\n,,,\n"),
    "list": lambda path: path.write_text("[1]"),
}
NEW = ["x", "._x", "record.json", "a.png", "claim.json", "log.txt", "attempts", "2.json", "é\x1b.png", b"\xff.png"]


def spoil_folder(folder: Path, data: st.DataObject) -> None:
    """One or two of the files and folders replaced by something odd, or something odd put beside them."""
    for _ in range(data.draw(st.integers(1, 2))):
        inside = data.draw(st.sampled_from(files_of(folder)))
        path, name = folder / inside, data.draw(st.none() | st.sampled_from(NEW))
        if name is not None:
            path = (path if path.is_dir() else path.parent) / os.fsdecode(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        ODD[data.draw(st.sampled_from(sorted(ODD)))](path)


def check_folder(results: Path, place: Path, data: st.DataObject, spoil: Callable[[Path, st.DataObject], None]) -> None:
    work = Path(tempfile.mkdtemp(dir=place))
    folder = shutil.copytree(results, work / "tiny")
    (work / "grid.yaml").write_text(yaml.safe_dump({"name": "tiny", "axes": AXES, "defaults": {"weights": "random"}}))
    try:
        spoil(folder, data)
        data.draw(reads)(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@QUICK
@given(data=st.data())
def test_records(results: Path, place: Path, data: st.DataObject) -> None:
    check_folder(results, place, data, spoil_record)


@QUICK
@given(data=st.data())
def test_folders(results: Path, place: Path, data: st.DataObject) -> None:
    check_folder(results, place, data, spoil_folder)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_records(results: Path, place: Path, data: st.DataObject) -> None:
    check_folder(results, place, data, spoil_record)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_folders(results: Path, place: Path, data: st.DataObject) -> None:
    check_folder(results, place, data, spoil_folder)
