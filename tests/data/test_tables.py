"""Tables to samples: the three formats, what a cell may say, and what is refused."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dskd.config import ConfigError
from harness.data import layouts, tables  # noqa: F401
from harness.data.catalog import DataError, Sample, entry_of, get_source
from harness.data.manifest import describe
from tests.conftest import save, texture
from tests.data.test_layouts import write_mtd
from tests.faults.commands import harness

Rows = Sequence[Mapping[str, Any]]
FORMATS = ("csv", "jsonl", "parquet")
RESULTS = {
    "train": ("kept_epoch", "loss_first", "loss_last", "train_images", "held_out_images"),
    "evaluate": (
        "image_auroc",
        "image_ap",
        "pixel_auroc",
        "pixel_ap",
        "aupro_0.30",
        "regions",
        "anomalous_without_mask",
    ),
}


def write_table(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def image(root: Path, name: str, seed: int, mask: str = "", defect: bool = False) -> None:
    pixels, truth = texture(seed, defect=defect)
    save(root / name, pixels)
    if mask:
        save(root / mask, truth.astype(np.uint8) * 255)


@pytest.fixture
def parts(tmp_path: Path) -> list[dict[str, Any]]:
    """Two categories; a good image with an empty mask, a defective one with a mask and one without."""
    rows: list[dict[str, Any]] = []
    for number, category in enumerate(("Blech ä", "cloth")):
        for position in range(3):
            rows.append({"path": f"img/{category}/t {position}.png", "split": "train", "label": "good", "mask": None})
        rows.append({"path": f"img/{category}/g.png", "split": "test", "label": "good", "mask": f"{category}/g.png"})
        rows.append({"path": f"img/{category}/b.png", "split": "test", "label": "Kratzer", "mask": f"{category}/b.png"})
        rows.append({"path": f"img/{category}/c.png", "split": "test", "label": "1", "mask": None})
        for position, row in enumerate(rows[-6:]):
            row |= {"category": category, "group": f"{position:03d}"}
            image(tmp_path, row["path"], 10 * number + position, row["mask"], row["label"] != "good")
    return rows


def source_of(file: Path, **entry: Any) -> Any:
    return get_source({"name": "table", "file": str(file), **entry})


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_give_the_same_samples_in_the_order_of_the_table(
    suffix: str, parts: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [row for pair in zip(parts[:6], parts[6:], strict=True) for row in pair]  # categories take turns
    source = source_of(write_table(tmp_path / f"parts.{suffix}", rows))
    assert source.chosen() == ["Blech ä", "cloth"]
    start = "img/Blech ä"
    assert source.samples("Blech ä") == [
        *(Sample(f"{start}/t {i}.png", "train", group=f"00{i}") for i in range(3)),
        Sample(f"{start}/g.png", "test", group="003"),  # its mask is empty
        Sample(f"{start}/b.png", "test", "Kratzer", "Blech ä/b.png", "004"),
        Sample(f"{start}/c.png", "test", "anomaly", None, "005"),
    ]
    assert get_source(entry_of(source)) == source  # as a worker gets it
    data = describe(source, "cloth")
    assert (data.train_images, data.test_images) == (3, 3)
    other = describe(source_of(write_table(tmp_path / "twin.csv", rows)), "cloth")
    assert other == data  # of another format and name


def test_columns_labels_and_numbers_as_others_write_them(parts: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [
        {"file": row["path"].replace("/", "\\"), "subset": row["split"].upper(), "y": float(row["label"] != "good")}
        for row in parts[:6]
    ]
    file = write_table(tmp_path / "Teile.csv", rows)
    file.write_text("\ufeff" + file.read_text().replace(",", ";"))  # a spreadsheet's CSV
    source = source_of(file, columns={"path": "file", "split": "subset", "label": "y"})
    (category,) = source.chosen()
    assert category == "Teile"
    assert [(s.path, s.split, s.defect) for s in source.samples(category)] == [
        (row["path"], row["split"], "good" if row["label"] == "good" else "anomaly") for row in parts[:6]
    ]
    flags = [{**row, "label": row["label"] != "good"} for row in parts[:6]]
    typed = source_of(write_table(tmp_path / "typed.parquet", flags))
    assert [s.defect for s in typed.samples("Blech ä")] == ["good"] * 4 + ["anomaly"] * 2
    words = [{**row, "mask": None, "label": "free" if row["label"] == "good" else "none"} for row in parts[:6]]
    own = source_of(write_table(tmp_path / "own.csv", words), normal=["FREE", "none"])
    assert {s.defect for s in own.samples("Blech ä")} == {"good"}


def test_without_labels_the_masks_tell_by_the_threshold(tmp_path: Path) -> None:
    rows = []
    for value in (0, 60, 200):
        image(tmp_path, f"{value}.png", value)
        save(tmp_path / "masks" / f"{value}.png", np.full((40, 40), value, np.uint8))
        rows.append({"path": f"{value}.png", "mask": f"masks/{value}.png", "split": "test"})
    file = write_table(tmp_path / "parts.csv", rows)
    assert [s.defect for s in source_of(file).samples("parts")] == ["good", "anomaly", "anomaly"]
    assert [s.defect for s in source_of(file, mask_threshold=127).samples("parts")] == ["good", "good", "anomaly"]
    save(tmp_path / "masks" / "0.png", np.full((40, 40), 255, np.uint8))  # what is remembered goes with the file
    assert source_of(file).samples("parts")[0].anomalous


def test_a_drawn_split_keeps_groups_and_moves_nothing_else(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "label": "good", "group": i // 3} for i in range(90)]
    rows.append({"path": "bad.png", "label": "crack", "group": 3})
    for row in rows:
        (tmp_path / row["path"]).touch()
    source = source_of(write_table(tmp_path / "all.jsonl", rows), train_share=0.8)
    before = source.samples("all")
    groups = {split: {s.group for s in before if s.split == split and not s.anomalous} for split in ("train", "test")}
    assert not groups["train"] & groups["test"]
    assert len(groups["train"]) + len(groups["test"]) == 30
    assert 18 <= len(groups["train"]) <= 29
    assert before[-1].split == "test"
    (tmp_path / "new.png").touch()
    more = source_of(
        write_table(tmp_path / "all.jsonl", [{**rows[0], "path": "new.png", "group": 99}, *rows]), train_share=0.8
    )
    assert more.samples("all")[1:] == before
    other = source_of(tmp_path / "all.jsonl", train_share=0.8, split_seed=1).samples("all")[1:]
    assert [s.split for s in other] != [s.split for s in before]


def as_table(source: Any, category: str, file: Path) -> dict[str, Any]:
    """The entry of a table with what another source says, masks of normal images among it; `category` is its name."""
    rows = []
    for s in source.samples(category):
        mask = s.mask or str(Path(s.path).with_suffix(".png"))
        rows.append({"path": s.path, "split": s.split, "label": s.defect, "mask": mask, "group": s.group})
    write_table(file, rows)
    return {"name": "table", "file": str(file), "root": source.root, "mask_threshold": source.mask_threshold}


@pytest.mark.usefixtures("without_workers")
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_metrics_of_magnetic_tiles_as_tables_are_those_of_mtd(
    real: bool, tmp_path: Path, write_grid: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue("mtd_root") if real else write_mtd(tmp_path / "mtd")
    mtd = {"name": "mtd", "root": str(root)}
    files = (tmp_path / "tables" / name for name in ("a.csv", "b.parquet"))  # two categories, or they were one run
    entries = [mtd, *(as_table(get_source(mtd), "magnetic_tile", file) for file in files)]
    grid = write_grid(axes={"dataset": entries}, defaults={"train.select": "val_normal"})
    done = harness("run", "--grid", grid, "--out", tmp_path, "--devices", "cpu")
    assert done.code == 0, done
    found: dict[str, list[Any]] = {"train": [], "evaluate": []}
    for path in (tmp_path / "tiny").glob("*/record.json"):
        record = json.loads(path.read_text())
        found[record["kind"]].append({key: record["result"].get(key) for key in RESULTS[record["kind"]]})
    for kind, results in found.items():
        assert results == [results[0]] * 3, kind
    assert found["train"][0]["held_out_images"]
    assert found["evaluate"][0]["pixel_auroc"] > 0


def change(row: int, **cells: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row].update(cells)


def rename(old: str, new: str) -> Callable[[list[dict[str, Any]]], None]:
    def apply(rows: list[dict[str, Any]]) -> None:
        rows[:] = [{new if key == old else key: value for key, value in row.items()} for row in rows]

    return apply


@pytest.mark.parametrize(
    ("spoil", "entry", "message"),
    [
        (rename("x", "x"), {"columns": {"mask": "maske"}}, r"no column 'maske' \(columns.mask\); did you mean 'mask'"),
        (rename("path", "file"), {}, r"no column 'path'; write columns: \{path: NAME\}: .*one of: file, split"),
        (rename("split", "subset"), {}, r"no column 'split'; .*or train_share: 0.8"),
        (rename("x", "x"), {"columns": {"lable": "label"}}, "unknown key .*columns.lable.*did you mean 'label'"),
        (change(4, label="good"), {}, r"1 image\(s\) labelled normal, with a mask that is not empty; .* first line 6"),
        (change(1, path="img/Blech ä/./t 0.png"), {}, r"'img/Blech ä/t 0.png' is twice \(line 2, line 3\)"),
        (change(4, path="img/Blech ä/t 0.png"), {}, r"t 0.png' is in the splits train and test \(line 2, line 6\)"),
        (change(4, split="train"), {}, r"1 image\(s\) defective and not of the test split, .* first line 6"),
        (change(4, split="tset"), {}, "line 6: split 'tset' is not possible; did you mean 'test'"),
        (change(0, label="2"), {}, "line 2: label '2' is not possible; write good"),
        (change(0, label=""), {}, "line 2: label '' is not possible"),
        (change(0, label="none"), {}, "label 'none' is not possible; .*normal: .LABEL."),
        (change(0, path=""), {}, "line 2: path '' is not possible; write a text"),
        (change(0, path="../t 0.png"), {}, "line 2: '../t 0.png' is not in the folder .*; write root"),
        (change(0, path="img/gone.png"), {}, r"1 of its files are not there, first .*gone.png \(line 2\)"),
        (rename("x", "x"), {"train_share": 1.0}, "train_share 1.0 is not possible; write a number between 0 and 1"),
        (rename("x", "x"), {"mask_threshold": -1}, "mask_threshold -1 is not possible"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    spoil: Callable[[list[dict[str, Any]]], None],
    entry: dict[str, Any],
    message: str,
    parts: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    spoil(parts)
    file = write_table(tmp_path / "parts.csv", parts)
    with pytest.raises(ConfigError, match=message) as error:
        describe(source_of(file, **entry), "Blech ä")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK", "a.xlsx is no table that can be read; write a file that ends in .csv"),
        ("a.csv", b"", "a.csv has no column 'path'"),
        ("a.csv", b"path,split,label\n", "a.csv holds no rows"),
        ("a.csv", b"path,split,label\na.png,train\n", "line 2: 2 cells, the first line has 3"),
        ("a.csv", b"path,path,label\n", "two columns 'path'"),
        ("a.csv", "path;ä\n".encode("latin-1"), "a.csv is not UTF-8"),
        ("a.jsonl", b'{"path": "a.png"}\n[1]\n', "a.jsonl, line 2: it is no JSON object"),
        ("a.parquet", b"PAR1", "a.parquet is no Parquet that can be read"),
    ],
)
def test_files_that_are_no_tables(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        source_of(tmp_path / name).chosen()
    assert "\n" not in str(error.value)


def test_a_table_beside_its_root(parts: list[dict[str, Any]], tmp_path: Path) -> None:
    outside = write_table(tmp_path / "lists" / "parts.csv", parts)
    assert len(source_of(outside, root=str(tmp_path)).samples("cloth")) == 6
    inner = write_table(tmp_path / "parts.csv", [{**row, "path": str(tmp_path / row["path"])} for row in parts])
    assert source_of(inner).samples("cloth") == source_of(outside, root=str(tmp_path)).samples("cloth")
    by_name = get_source({"name": "table", "root": str(tmp_path), "file": "parts.csv"})
    assert by_name.chosen() == ["Blech ä", "cloth"]
    with pytest.raises(DataError, match="there is no file"):
        source_of(tmp_path / "gone.csv").chosen()
    with pytest.raises(DataError, match="`file` is missing; write"):
        get_source("table").chosen()
