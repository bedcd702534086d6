"""Data sets of `datasets`, in the shapes of public ones: local Parquet, folders of save_to_disk, and no network."""

import io
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dskd.config import ConfigError
from harness.data import hub, images, tables  # noqa: F401
from harness.data.catalog import DataError, Source, entry_of, get_source
from harness.data.manifest import describe
from tests.conftest import save, texture
from tests.data.test_tables import write_table

datasets = pytest.importorskip("datasets")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def rows_of(category: str, split: str, start: int) -> list[dict[str, Any]]:
    """As TheoM55/mvtec_all_objects_split: image and mask as bytes and a name, the mask null where all is good."""
    rows = []
    for i in range(3):
        defect = split == "test" and i > 0
        pixels, mask = texture(start + i, defect=defect)
        rows.append(
            {
                "object": category,
                "split": split,
                "defect": "hole" if defect else "good",
                "label": int(defect),
                "image_path": {"bytes": png(pixels), "path": f"{i:03d}.png"},
                "mask_path": {"bytes": png(mask.astype(np.uint8) * 255), "path": f"{i:03d}_mask.png"}
                if defect
                else None,
            }
        )
    return rows


def dataset_of(rows: list[dict[str, Any]], **features: Any) -> Any:
    given = datasets.Dataset.from_list(rows)
    return given.cast(datasets.Features({**given.features, **features}))


COLUMNS = {"image": "image_path", "mask": "mask_path", "label": "defect", "category": "object"}


@pytest.fixture
def parquet(tmp_path: Path) -> dict[str, list[str]]:
    """Files of two categories and two splits, named as on the hub."""
    pictures = {"image_path": datasets.Image(), "mask_path": datasets.Image()}
    for number, category in enumerate(("bottle", "screw")):
        for split in ("train", "test"):
            rows = rows_of(category, split, 100 * number + 10 * (split == "test"))
            dataset_of(rows, **pictures).to_parquet(tmp_path / f"data/{category}.{split}-00000-of-00001.parquet")
    return {split: [str(tmp_path / f"data/*.{split}-*.parquet")] for split in ("train", "test")}


def pixels_of(source: Source, category: str) -> Any:
    return images.load(source, describe(source, category), 32)


def test_local_parquet_is_read_as_its_files_are(parquet: dict[str, list[str]], tmp_path: Path) -> None:
    source = get_source({"name": "hub", "data_files": parquet, "columns": COLUMNS})
    assert source.chosen() == ["bottle", "screw"]
    samples = source.samples("screw")
    assert [(s.split, s.defect, bool(s.mask)) for s in samples] == [
        *[("train", "good", False)] * 3,
        ("test", "good", False),
        *[("test", "hole", True)] * 2,
    ]
    assert get_source(entry_of(source)) == source  # as a worker gets it
    rows = []
    for split in ("train", "test"):
        for i, row in enumerate(rows_of("screw", split, 100 + 10 * (split == "test"))):
            table = {"path": f"{split}/{i}.png", "split": split, "label": row["defect"], "mask": None}
            for role, column in (("path", "image_path"), ("mask", "mask_path")):
                if row[column]:
                    table[role] = f"{split}/{role}{i}.png"
                    (tmp_path / split).mkdir(exist_ok=True)
                    (tmp_path / table[role]).write_bytes(row[column]["bytes"])
            rows.append(table)
    files = get_source({"name": "table", "file": str(write_table(tmp_path / "screw.csv", rows))})
    mine, theirs = pixels_of(source, "screw"), pixels_of(files, "screw")
    assert np.array_equal(mine.train.images, theirs.train.images)
    for name in ("images", "masks", "regions"):
        assert np.array_equal(getattr(mine.test, name), getattr(theirs.test, name))
    assert not list(source.folder().glob("prepared*"))


def test_a_folder_of_save_to_disk_with_splits_of_categories(tmp_path: Path) -> None:
    """As BrachioLab/visa: `<category>.<split>`; the label is a class."""
    whole = datasets.DatasetDict()
    for split in ("train", "test"):
        rows = [
            {"image": row["image_path"], "mask": row["mask_path"], "label": row["label"]}
            for row in rows_of("candle", split, 40 + 10 * (split == "test"))
        ]
        classes = datasets.ClassLabel(names=["normal", "scratch"])
        whole[f"candle.{split}"] = dataset_of(rows, image=datasets.Image(), mask=datasets.Image(), label=classes)
    whole.save_to_disk(tmp_path / "visa")
    entry = {"name": "hub", "path": str(tmp_path / "visa")}
    first = describe(get_source(entry), "candle")
    assert (first.train_images, first.test_images) == (3, 3)
    assert {s.defect for s in get_source(entry).samples("candle")} == {"good", "scratch"}
    shutil.move(tmp_path / "visa", tmp_path / "moved")
    assert describe(get_source({"name": "hub", "path": str(tmp_path / "moved")}), "candle") == first
    drawn = get_source({"name": "hub", "path": str(tmp_path / "moved"), "train_share": 0.5})
    assert {s.split for s in drawn.samples("candle") if s.anomalous} == {"test"}


def test_equal_pictures_keep_a_row_each_and_damage_is_mended(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(texture(1)[0]), "path": None}, "label": "ok", "split": "train"} for _ in range(3)]
    dataset_of(rows, image=datasets.Image()).save_to_disk(tmp_path / "same")
    source = get_source({"name": "hub", "path": str(tmp_path / "same"), "columns": {"split": "split"}})
    assert source.chosen() == ["same"]
    paths = [sample.path for sample in source.samples("same")]
    assert len({*paths}) == 3
    data = describe(source, "same")
    save(source.folder() / paths[1], texture(2)[0])
    assert len(images.load(source, data, 32).train.images) == 3  # written anew
    (source.folder() / "index.json").write_text("{")
    assert [sample.path for sample in source.samples("same")] == paths


def test_what_is_not_asked_for_is_not_written(parquet: dict[str, list[str]]) -> None:
    source = get_source({"name": "hub", "data_files": parquet, "columns": COLUMNS, "categories": ["screw"]})
    assert source.chosen() == ["screw"]
    one = {
        "train": [parquet["train"][0].replace("/*.", "/bottle.")],
        "test": [parquet["test"][0].replace("/*.", "/bottle.")],
    }
    unnamed = {"name": "hub", "data_files": one, "columns": {**COLUMNS, "category": ""}}
    assert get_source(unnamed).chosen() == ["bottle"]
    assert len(list((source.folder() / "images").iterdir())) == 8
    with pytest.raises(DataError, match="unknown category 'scew'; did you mean 'screw'"):
        get_source({"name": "hub", "data_files": parquet, "columns": COLUMNS, "categories": ["scew"]}).chosen()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "write repo: OWNER/NAME, path: FOLDER or data_files"),
        ({"root": "here"}, "takes no `root`"),
        ({"path": "a", "repo": "b/c"}, "`path` goes with neither"),
        ({"path": "{}"}, "is no folder of datasets' save_to_disk"),
        ({"data_files": {"train": ["{}/gone*.parquet"]}}, "no file matches .*gone"),
        ({"data_files": {"train": ["{}/a.csv"]}}, "a.csv is not of .parquet"),
        ({"data_files": {"train": ["{}/broken.parquet"]}}, "cannot be loaded by `datasets`"),
        ({"data_files": {"train": ["{}/data/*"]}}, "has no column 'image'; .*one of: object, split, defect"),
        (
            {"data_files": {"train": ["{}/data/*"]}, "columns": {"image": "image_pth"}},
            r"no column 'image_pth' \(columns.image\); did you mean 'image_path'",
        ),
        ({"data_files": {"train": ["{}/data/*"]}, "columns": {"image": "object"}}, "column 'object' holds no images"),
    ],
)
def test_bad_entries_are_refused_in_one_line(
    entry: dict[str, Any], message: str, parquet: dict[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    filled = {key: _filled(value, str(tmp_path)) for key, value in entry.items()}
    with pytest.raises(ConfigError, match=message) as error:
        get_source({"name": "hub", **filled}).chosen()
    assert "\n" not in str(error.value)


def _filled(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, root) for key, each in value.items()}
    return [_filled(each, root) for each in value] if isinstance(value, list) else value.replace("{}", root)


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = get_source({"name": "hub", "repo": "owner/name"})
    started = time.monotonic()
    with pytest.raises(DataError, match=r"owner/name cannot be loaded by `datasets` .*Offline"):
        source.chosen()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("harness.network.reachable", lambda _: False)
    with pytest.raises(DataError, match="owner/name is not in the cache and the hub cannot be reached; plan once"):
        source.chosen()
    assert time.monotonic() - started < 15  # the library tries for 23 s
