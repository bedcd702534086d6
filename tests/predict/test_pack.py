"""`harness pack`: one file that predicts without the results folder, and what is said of one that cannot be used."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dskd
from harness.predict import pack
from tests.faults.commands import harness, refusal
from tests.predict.conftest import Trained


def parts(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[pack.KEY]), file.metadata()


@pytest.fixture(scope="session")
def packed(trained: Trained) -> Path:
    path = trained.root / "cloth.pack"
    folder = trained.folder(method="stfpm", category="cloth", label="")
    done = harness("pack", folder, "--out", path)
    assert done.code == 0, done
    assert re.search(r"cloth\.pack  [0-9.]+ MiB  stfpm resnet18 data/cloth seed 0\n", done.out)
    assert "threshold: none" in done.out
    licences = "weights: not known: teacher.safetensors is a file of the user's; data: not known: data of the user's"
    assert f"licences: {licences}" in done.out
    return path


def test_a_model_is_named_with_what_its_map_and_score_are(trained: Trained) -> None:
    names = {each.spec.get("label"): dskd.load(trained.results / each.id).about["name"] for each in trained.records()}
    assert names[""].endswith(" seed 0")
    assert names["smooth"].endswith(" seed 0 smooth")


def test_a_pack_tells_where_it_is_from(packed: Path, trained: Trained) -> None:
    model = dskd.load(packed)
    (training,) = [each for each in trained.records("train") if each.id == model.about["training"]]
    assert model.about["trained"] == training.started_at
    assert (model.about["dataset"], model.about["category"]) == ("folder", "cloth")
    assert model.about["licences"].keys() == {"weights", "data"}
    assert {"packed", "commit", "versions", "sha256"} <= model.about["pack"].keys()
    with pytest.raises(dskd.ConfigError, match="is a pack and holds its teacher; leave them out"):
        dskd.load(packed, weights="resnet18.safetensors")


def test_packs_that_cannot_be_used_are_refused_in_one_line(packed: Path, trained: Trained, tmp_path: Path) -> None:
    content, damaged = packed.read_bytes(), tmp_path / "damaged.pack"

    def refused(message: str) -> None:
        with pytest.raises(dskd.ConfigError, match=message) as caught:
            dskd.load(damaged)
        assert "\n" not in str(caught.value)

    for place in (len(content) // 2, len(content) - 1, content.index(b"stfpm")):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused("is damaged: its content is not what its sha256 says")
    damaged.write_bytes(content[: len(content) // 2])
    refused("is no pack, or was cut")
    damaged.write_bytes(b"PK\x03\x04 a zip")
    refused("is no pack, or was cut")
    students = next(trained.results.glob("*/students.safetensors"))
    damaged.write_bytes(students.read_bytes())
    refused("is a safetensors file, but no pack; `harness pack RUN --out FILE` makes one")

    document, _ = parts(packed)
    tensors = load_file(packed)
    for changes, message in (
        ({"schema": pack.SCHEMA + 1}, r"of schema 2, newer than this harness reads \(1\); update dskd-harness"),
        ({"revisions": {"methods": 0, "metrics": 1, "pixels": 2}}, "was packed by another revision of the methods"),
        ({"content": {}}, "Content: "),
        ({"schema": None}, "schema: null is not possible"),
    ):
        head = json.dumps(document | changes)
        save_file(tensors, damaged, {pack.KEY: head, pack.HASH: pack._sha256(head, tensors)})
        refused(message)


def test_runs_that_cannot_be_packed_say_what_to_do(
    trained: Trained, calibrated: Callable[..., Path], tmp_path: Path
) -> None:
    runs = ("--runs", trained.root / "runs", "--out", tmp_path / "x.pack")
    folder = calibrated()
    results = folder.parent
    (training,) = (path.parent for path in results.glob("*/students.safetensors"))
    ensemble = next(each.id for each in trained.records("train") if "ensemble" in each.spec["method"]["name"])
    for words, message in (
        (("0" * 16, *runs), "no run '0000000000000000'"),
        (("method=stfpm", *runs), "is 4 models, of category cloth, felt; say which, such as category=cloth: "),
        (("category=felt", *runs), "is 2 models, which differ in their settings; name the folder of one: "),
        (("kind=train,category=felt", *runs), "has 2 evaluations, each with a map and a score; name one: "),
        (("category=wood", *runs), "has category=wood"),
        ((trained.results, *runs), "holds the runs of a grid; name the folder of one of them"),
        ((trained.results / ensemble, *runs), "has 2 evaluations, each with a map and a score; name one: "),
        ((trained.data, *runs), "is no run that is done: it has no record"),
        ((folder, "--out", tmp_path), f"--out: {tmp_path} cannot be written"),
    ):
        assert message in refusal("pack", *words), words
    (training / "students.safetensors").rename(tmp_path / "away")
    assert "save: {weights: true} in its grid and train again" in refusal("pack", folder, *runs)
    (training / "record.json").unlink()
    assert "is no run that is done: it has no record" in refusal("pack", folder, *runs)
    assert not list(tmp_path.glob("*.pack*"))


def test_the_teacher_is_the_one_that_the_run_had(
    trained: Trained, calibrated: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, moved, other = calibrated(), tmp_path / "moved.safetensors", tmp_path / "teacher.safetensors"
    paths, scores = trained.scored(folder)
    moved.write_bytes(trained.teacher.read_bytes())
    save_file({key: value + 1 for key, value in load_file(moved).items()}, other)
    grid = folder.parent / "grid.yaml"
    text = grid.read_text()
    give = "give its path as weights=PATH (--weights PATH)"
    for changed in (str(tmp_path / "gone" / "teacher.safetensors"), str(other)):
        grid.write_text(text.replace(str(trained.teacher), changed))
        said = refusal("pack", folder, "--out", tmp_path / "x.pack")
        assert changed in said
        assert "the run needs teacher.safetensors with sha256 " in said
        assert said.endswith(give)
    grid.unlink()
    assert refusal("pack", folder, "--out", tmp_path / "x.pack").endswith(give)
    assert "is not the teacher of the run" in refusal("pack", folder, "--weights", other, "--out", tmp_path / "x.pack")
    assert [each.score for each in dskd.load(folder, weights=moved).predict(paths)] == scores
    random = trained.folder(method="student_ensemble", category="cloth", label="")
    with pytest.raises(dskd.ConfigError, match="the run's teacher is random"):
        dskd.load(random, weights=moved)


def test_a_run_of_another_revision_is_refused(calibrated: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = calibrated()
    monkeypatch.setattr("dskd.methods.REVISION", 77)
    with pytest.raises(dskd.ConfigError, match="is of another revision of the methods or metrics"):
        dskd.load(folder)
