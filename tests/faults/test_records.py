"""Damaged and hand-edited records: each costs its own run and one line, whatever command meets it (faults.md, area A).

One row a situation, in an otherwise good results folder; every command that reads records goes over each.
"""

import builtins
import errno
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dskd.config import to_mapping
from harness.cli.common import make_plan
from harness.launch.progress import planned, write_plan
from harness.records import Record, Results
from tests.conftest import write_mvtec
from tests.faults.commands import harness
from tests.leaderboard.synthetic import AT, DEVICE, ENVIRONMENT

METRICS = {"image_auroc": 0.9, "pixel_auroc": 0.8, "aupro_0.30": 0.7, "degenerate": False}
LOG_END = "the very end of the log"
Damage = Callable[[Path], object]  # of the folder of a run


@dataclass(frozen=True)
class Prepared:
    """A finished grid: `hit` are the ids of the works of its run of stfpm, which the rows damage, by kind."""

    grid: Path
    results: Path
    hit: dict[str, str]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    base = tmp_path_factory.mktemp("prepared")
    axes = {"method": ["stfpm", "dskd"], "backbone": ["resnet18"], "seed": [0]}
    axes["dataset"] = [{"name": "folder", "root": str(write_mvtec(base / "data"))}]
    defaults = {"image_size": 32, "weights": "random", "train.epochs": 4, "train.select": "last"}
    document = {"name": "tiny", "axes": axes, "defaults": defaults, "bench": {"seconds": 1}}
    grid = base / "tiny.yaml"
    grid.write_text(yaml.safe_dump(document))
    _, plan = make_plan(grid, "cpu", None)
    results = Results(base / "runs" / "tiny")
    results.folder.mkdir(parents=True)
    shutil.copy(grid, results.folder / "grid.yaml")
    write_plan(results.folder, planned(plan))
    hit = {}
    trained = {"train_s": 12.5, "images_per_s": 80.0, "epochs": 4, **DEVICE}
    done = {"train": trained, "evaluate": METRICS | DEVICE, "bench": {"images_per_s": 50.0, **DEVICE}}
    specs = [spec for run in plan.trainings for spec in (run.spec, *run.evaluations)]
    for spec in (*specs, *plan.benches):
        results.publish(Record(spec.kind, spec.id, to_mapping(spec), done[spec.kind], ENVIRONMENT, AT, 1.0))
        method = (spec.train if spec.kind == "evaluate" else spec).method
        if method.name == "stfpm":
            hit[spec.kind] = spec.id
            (results.run_folder(spec.id).path / "log.txt").write_text(f"a line\n{LOG_END}\n")
    return Prepared(grid, results.folder, hit)


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy to damage, beside an untouched one."""
    for name in ("good", "runs"):
        shutil.copytree(prepared.results, tmp_path / name / "tiny", symlinks=True)
    return tmp_path / "runs" / "tiny"


def written(content: bytes | str) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda run: (run / "record.json").write_bytes(data)


def edited(**changes: Any) -> Damage:
    """With values put in (dotted keys with `__`), and keys removed where the value is `...`."""

    def damage(run: Path) -> None:
        document = json.loads((run / "record.json").read_text())
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            place = document
            for key in path:
                place = place[key]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (run / "record.json").write_text(json.dumps(document))

    return damage


def cut(run: Path) -> None:
    path = run / "record.json"
    path.write_bytes(path.read_bytes()[:200])


def instead(make: Callable[[Path], object]) -> Damage:
    def damage(run: Path) -> None:
        (run / "record.json").unlink()
        make(run / "record.json")

    return damage


def a_file_for_the_run(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("not a folder")


def a_loop_for_the_run(run: Path) -> None:
    shutil.rmtree(run)
    run.symlink_to(run)


NESTED = '{"schema": 1, "kind": "train", "result": ' + "[" * 50_000 + "]" * 50_000 + "}"
DEEP: Any = {}
for _ in range(400):
    DEEP = {"a": DEEP}


def row(name: str, kind: str, damage: Damage, says: str) -> Any:
    return pytest.param(kind, damage, says, id=f"{kind}-{name}")


ROWS = [
    row("empty", "evaluate", written(b""), "is empty"),
    row("truncated", "evaluate", cut, "is not JSON"),
    row("truncated", "train", cut, "is not JSON"),
    row("not-utf-8", "evaluate", written(b'{"schema": 1, "kind": "\xff"}'), "is not JSON"),
    row("a-list", "evaluate", written("[1, 2]"), "not a record"),
    row("nested-too-deep", "train", written(NESTED), "nested too deep"),
    row("spec-nested-deep", "evaluate", edited(spec__map__sigma=DEEP), "nested too deep"),
    row("newer-schema", "evaluate", edited(schema=99), "schema 99 is newer"),
    row("schema-a-text", "evaluate", edited(schema="1"), "not a record"),
    row("unknown-kind", "evaluate", edited(kind="tune"), "kind: 'tune' is not possible"),
    row("key-missing", "evaluate", edited(environment=...), "environment is missing"),
    row("key-unknown", "evaluate", edited(surprise=1), "unknown key 'surprise'"),
    row("of-another-run", "evaluate", edited(id="0123456789abcdef"), "is the record of run 0123456789abcdef"),
    row("spec-empty", "train", edited(spec={}), "spec.method is missing"),
    row("spec-empty", "evaluate", edited(spec={}), "spec.train is missing"),
    row("result-empty", "evaluate", edited(result={}), "result.precision is missing"),
    row("result-empty", "bench", edited(result={}), "result.precision is missing"),
    row("train_s-0", "train", edited(result__train_s=0), "result.train_s: 0 is not possible"),
    row("train_s-a-text", "train", edited(result__train_s="12"), "result.train_s: '12' is not possible"),
    row("speed-0", "bench", edited(result__images_per_s=0), "result.images_per_s: 0 is not possible"),
    row("auroc-a-text", "evaluate", edited(result__image_auroc="abc"), "a share from 0 to 1"),
    row("auroc-a-list", "evaluate", edited(result__image_auroc=[0.5]), "a list is not possible"),
    row("auroc-infinity", "evaluate", edited(result__image_auroc=float("inf")), "Infinity is no number"),
    row("auroc-nan", "evaluate", edited(result__image_auroc=float("nan")), "NaN is no number"),
    row(
        "auroc-1e999",
        "evaluate",
        lambda run: (p := run / "record.json").write_text(p.read_text().replace("0.9", "1e999")),
        "inf is not possible",
    ),
    row("auroc-97", "evaluate", edited(result__image_auroc=97), "97 is not possible"),
    row("aupro-a-text", "evaluate", edited(**{"result__aupro_0.05": "x"}), "aupro_0.05: 'x' is not possible"),
    row("started_at-null", "evaluate", edited(started_at=None), "started_at: null is not possible"),
    row("environment-null", "evaluate", edited(environment=None), "environment: null is not possible"),
    row("data-options-odd", "evaluate", edited(spec__train__data__options=[["a"]]), "options.0"),
    row("category-not-unicode", "evaluate", edited(spec__train__data__category="\ud800"), "is not Unicode"),
    row("a-folder", "train", instead(Path.mkdir), "record.json is a folder"),
    row("a-pipe", "train", instead(os.mkfifo), "record.json is no regular file"),
    row("link-loop", "train", instead(lambda path: path.symlink_to(path)), "symbolic links"),
    row("link-to-nothing", "evaluate", instead(lambda path: path.symlink_to("gone")), "a link to nothing"),
    row("run-is-a-file", "evaluate", a_file_for_the_run, "a file where the folder of a run should be"),
    row("run-is-a-link-loop", "evaluate", a_loop_for_the_run, "symbolic links"),
    row("of-another-user", "train", None, "Permission denied"),
]


def deny(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """As if the folder were another user's with mode 0700: root, who runs the tests, is denied nothing."""

    def denied(function: Callable) -> Callable:
        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
            if text.startswith(f"{folder}/") or (text == str(folder) and function.__name__ in ("scandir", "listdir")):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), text)
            return function(path, *args, **options)

        call.__name__ = function.__name__
        return call

    for module, names in (
        (os, ("open", "stat", "lstat", "scandir", "listdir")),
        (io, ("open",)),
        (builtins, ("open",)),
    ):
        for name in names:
            patch.setattr(module, name, denied(getattr(module, name)))


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def naming(text: str, run_id: str) -> list[str]:
    return [line for line in text.splitlines() if run_id in line]


@pytest.mark.parametrize(("kind", "damage", "says"), ROWS)
def test_a_damaged_record_costs_its_run_and_one_line(
    kind: str, damage: Damage | None, says: str, prepared: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = prepared.hit[kind]
    if damage is None:
        deny(folder / run_id, monkeypatch)
    else:
        damage(folder / run_id)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))

    plan = harness("plan", "--grid", prepared.grid, "--out", folder.parent, "--list")
    assert plan.code == 0, plan
    (line,) = naming(plan.err, run_id)
    assert "not done" in line
    assert says in line
    assert re.search(f"^{run_id}  to do", plan.out, re.MULTILINE), plan.out
    assert len(re.findall("^[0-9a-f]{16}  done", plan.out, re.MULTILINE)) == 5  # of six works

    status = harness("status", folder)
    assert status.code == 1, status
    assert says in status.out.replace("\n", "")

    board = harness("leaderboard", folder)
    assert board.code == 0, board
    assert "dskd" in board.out
    (line,) = naming(board.err, run_id)
    assert says in line
    tables = strict(harness("leaderboard", folder, "--format", "json", "--table", "all").out)
    methods = [each["method"] for each in tables["sections"][0]["tables"][0]["rows"]]
    assert methods == (["dskd"] if kind == "evaluate" else ["dskd", "stfpm"])
    assert harness("leaderboard", folder, "--format", "csv").code == 0

    compared = harness("compare", folder.parents[1] / "good" / "tiny", folder)
    assert compared.code == 0, compared
    assert "dskd" in compared.out
    assert says in compared.err

    shown = harness("show", folder / run_id if (folder / run_id).is_dir() else run_id, "--out", folder.parent)
    if (folder / run_id).is_dir():
        assert shown.code == 0, shown
        assert "damaged" in shown.out
        assert says in shown.out
        assert "harness run" in shown.out
        assert LOG_END in shown.out or damage is None
    else:
        assert shown.code == 2
        assert shown.err.count("\n") == 1
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before  # they only read


@pytest.mark.skipif(importlib.util.find_spec("altair") is None, reason="pip install 'dskd-harness[report]'")
def test_the_report_holds_the_good_runs_beside_all_of_them(
    prepared: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One page over every row at once: each damages a run folder of its own."""
    for number, each in enumerate(ROWS):
        kind, damage, _ = each.values
        run = folder / f"{number:016x}"
        shutil.copytree(folder.parents[1] / "good" / "tiny" / prepared.hit[kind], run)
        edited(id=run.name)(run)
        (damage or (lambda run: deny(run, monkeypatch)))(run)
    page = folder.parent / "page.html"
    done = harness("report", folder, "--out", page)
    assert done.code == 0, done
    text = page.read_text()
    assert f"{len(ROWS)} damaged records skipped" in text
    assert "2 evaluations" in text
    assert not re.search(r"\b(Infinity|inf|nan|NaN)\b", re.sub("(?s)<script.*?</script>", "", text))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(edited(spec__train__method__new_switch=3), id="a-switch-of-a-newer-commit"),
        pytest.param(edited(spec__train__method__recipe="future"), id="a-recipe-of-a-newer-commit"),
        pytest.param(edited(**{"result__aupro_new": 0.5}), id="a-metric-of-a-newer-commit"),
    ],
)
def test_what_a_newer_commit_adds_is_a_setting_and_blocks_nothing(
    damage: Damage, prepared: Prepared, folder: Path
) -> None:
    damage(folder / prepared.hit["evaluate"])
    for run in folder.glob("*/record.json"):  # a training's spec is what the estimates are learned from
        document = json.loads(run.read_text())
        if document["kind"] == "train":
            document["spec"]["method"]["new_switch"] = 3
            document["spec"]["new_switch"] = 3
            run.write_text(json.dumps(document))
    plan = harness("plan", "--grid", prepared.grid, "--out", folder.parent)
    assert (plan.code, plan.err) == (0, "")
    board = harness("leaderboard", folder, "--table", "all")
    assert (board.code, board.err) == (0, "")
    assert "stfpm" in board.out


@pytest.mark.parametrize("result", [{}, {"train_s": 1.0}], ids=["nothing", "no-device"])
def test_estimates_skip_what_they_cannot_learn_from(result: dict[str, Any], prepared: Prepared, folder: Path) -> None:
    """A training that does not say how long it took, or where: `plan` tells a time all the same."""
    for path in folder.glob("*/record.json"):
        document = json.loads(path.read_text())
        if document["kind"] == "train":
            document["result"] = result
            path.write_text(json.dumps(document))
    plan = harness("plan", "--grid", prepared.grid, "--out", folder.parent)
    assert (plan.code, plan.err) == (0, "")


@pytest.mark.parametrize(
    "command",
    [["run", "--devices", "cpu"], ["submit", "--dry-run", "--sbatch", "gpus-per-node="]],
    ids=["run", "submit"],
)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(edited(spec__method__new_switch=3), id="a-switch-of-a-newer-commit"),
        pytest.param(edited(result={}), id="result-empty"),
    ],
)
def test_an_odd_training_blocks_no_other_run(
    command: list[str], damage: Damage, prepared: Prepared, folder: Path
) -> None:
    damage(folder / prepared.hit["train"])
    done = harness(*command, "--grid", prepared.grid, "--out", folder.parent)
    assert done.code == 0, done
    assert "to do: nothing" in done.out or "nothing to submit" in done.out


def torn_attempt(run: Path) -> Path:
    return _put(run / "attempts" / "1.json", '{"kind": "tr')


def attempt_of_a_list(run: Path) -> Path:
    return _put(run / "attempts" / "1.json", "[]")


def attempt_without_a_spec(run: Path) -> Path:
    failure = {"kind": "train", "id": run.name, "spec": [], "reason": 3, "schema": 1}
    return _put(run / "attempts" / "1.json", json.dumps(failure))


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("damage", [torn_attempt, attempt_of_a_list, attempt_without_a_spec])
def test_a_damaged_attempt_is_named_and_passed_over(
    damage: Callable[[Path], Path], prepared: Prepared, folder: Path
) -> None:
    run = folder / prepared.hit["evaluate"]
    (run / "record.json").unlink()
    path = damage(run)
    for command in (["status", folder], ["leaderboard", folder], ["show", run]):
        done = harness(*command)
        assert done.code in (0, 1), done
        assert str(path.relative_to(folder)) in (done.out + done.err).replace("\n", ""), command
    assert harness("plan", "--grid", prepared.grid, "--out", folder.parent).code == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("plan.json", '[{"id": "a", "ti', id="plan-torn"),
        pytest.param("plan.json", '{"id": 1}', id="plan-no-list"),
        pytest.param("plan.json", '[{"id": 1, "title": [], "works": 3}]', id="plan-of-wrong-types"),
        pytest.param("slurm/x.json", '{"shards": ', id="submission-torn"),
        pytest.param("slurm/x.json", '{"jobs": 3}', id="submission-of-wrong-types"),
        pytest.param("slurm/x.json", '{"jobs": [], "runs": {"a": []}, "shards": 1}', id="submission-of-odd-shards"),
        pytest.param("shards/x.json", '{"id": "', id="supervisor-torn"),
        pytest.param("shards/x.json", "[" * 20_000, id="supervisor-nested"),
    ],
)
def test_status_goes_on_where_a_file_beside_the_runs_is_damaged(name: str, content: str, folder: Path) -> None:
    _put(folder / name, content)
    status = harness("status", folder)
    assert status.code == 0, status
    assert "done" in status.out
    assert name in status.out.replace("\n", "")
