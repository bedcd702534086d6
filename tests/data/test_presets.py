"""The field's layouts, on small trees with the originals' names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import images, presets  # noqa: F401
from harness.data.catalog import DataError, Sample, entry_of, get_source
from harness.data.manifest import describe
from tests.conftest import save, texture, write_mvtec
from tests.data.test_tables import write_table


def put(root: Path, name: str, seed: int, mask: str = "", value: int = 255) -> None:
    """An image, defective where it is given a mask, of which `value` are the defective pixels."""
    pixels, truth = texture(seed, defect=bool(mask))
    save(root / name, pixels)
    if mask:
        save(root / mask, truth.astype(np.uint8) * value)


def read(name: str, root: Path, **entry: Any) -> dict[str, list[Sample]]:
    """By category the samples, of which every file is read as a plan and a run do."""
    source = get_source({"name": name, "root": str(root), **entry})
    found = {}
    for category in source.chosen():
        found[category] = source.samples(category)
        pixels = images.load(source, describe(source, category), 32)
        known = [s.mask is not None for s in pixels.test.samples]
        assert [bool(mask.any()) for mask in pixels.test.masks] == known
    assert get_source(entry_of(source)) == source
    return found


def counts(samples: list[Sample]) -> dict[tuple[str, str], int]:
    return dict(Counter((sample.split, sample.defect) for sample in samples))


def test_btad(tmp_path: Path) -> None:
    for category, suffix, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        for i in range(2):
            put(tmp_path, f"{category}/train/ok/{i:04d}.{suffix}", i)
        put(tmp_path, f"{category}/test/ok/0000.{suffix}", 5)
        put(tmp_path, f"{category}/test/ko/0000.{suffix}", 6, f"{category}/ground_truth/ko/0000.{mask}")
    found = read("btad", tmp_path)
    assert list(found) == ["01", "02", "03"]
    for samples in found.values():
        assert counts(samples) == {("train", "good"): 2, ("test", "ko"): 1, ("test", "good"): 1}
    (tmp_path / "02" / "ground_truth" / "ko" / "0000.png").rename(tmp_path / "02" / "ground_truth" / "ko" / "1.png")
    with pytest.raises(DataError, match=r"1 image\(s\) without a mask, first .*ko/0000.png"):
        get_source({"name": "btad", "root": str(tmp_path)}).samples("02")


@pytest.mark.parametrize("name", ["mpdd", "visa"])
def test_those_in_mvtecs_layout(name: str, tmp_path: Path) -> None:
    (samples,) = read(name, write_mvtec(tmp_path, "tubes")).values()
    assert counts(samples) == {("train", "good"): 6, ("test", "good"): 3, ("test", "hole"): 3}


def test_mvtec_ad_2_without_its_private_parts(tmp_path: Path) -> None:
    base = "sheet_metal"
    put(tmp_path, f"{base}/train/good/000_regular.png", 1)
    put(tmp_path, f"{base}/validation/good/000_regular.png", 2)
    put(tmp_path, f"{base}/test_public/good/000_regular.png", 3)
    name = "000_overexposed"
    put(tmp_path, f"{base}/test_public/bad/{name}.png", 4, f"{base}/test_public/ground_truth/bad/{name}_mask.png")
    put(tmp_path, f"{base}/test_private/000_regular.png", 5)
    put(tmp_path, f"{base}/test_private_mixed/000_mixed.png", 6)
    (samples,) = read("mvtec_ad_2", tmp_path).values()
    assert counts(samples) == {(split, "good"): 1 for split in ("train", "val", "test")} | {("test", "bad"): 1}


def test_loco_joins_the_masks_of_an_image(tmp_path: Path) -> None:
    base = "pushpins"
    for split in ("train", "validation", "test"):
        put(tmp_path, f"{base}/{split}/good/000.png", len(split))
    for kind in ("logical_anomalies", "structural_anomalies"):
        put(tmp_path, f"{base}/test/{kind}/000.png", 7, f"{base}/ground_truth/{kind}/000/000.png", 250)
    other = np.zeros((40, 40), np.uint8)
    other[:2, :2] = 7
    save(tmp_path / base / "ground_truth" / "logical_anomalies" / "000" / "001.png", other)
    (samples,) = read("mvtec_loco", tmp_path).values()
    assert counts(samples)["val", "good"] == 1
    (logical,) = [sample for sample in samples if sample.defect == "logical_anomalies"]
    assert [Path(mask).name for mask in logical.masks] == ["000.png", "001.png"]
    source = get_source({"name": "mvtec_loco", "root": str(tmp_path)})
    before = describe(source, base)
    loaded = images.load(source, before, 40)
    of_kind = {s.defect: mask for s, mask in zip(loaded.test.samples, loaded.test.masks, strict=True)}
    one = of_kind["structural_anomalies"]
    assert np.array_equal(of_kind["logical_anomalies"], one | (other > 0))
    assert [*loaded.train.samples, *loaded.test.samples] == samples  # also of the cache
    other[:2, :2] = 0
    save(tmp_path / base / "ground_truth" / "logical_anomalies" / "000" / "001.png", other)
    assert describe(source, base).test_manifest != before.test_manifest
    save(tmp_path / base / "ground_truth" / "logical_anomalies" / "000" / "002.png", other[:20])
    with pytest.raises(DataError, match=r"002.png is 40x20 pixels, its image is 40x40"):
        describe(source, base)


def test_visa_by_its_table(tmp_path: Path) -> None:
    rows = []
    for category in ("candle", "pcb1"):
        for i, split in enumerate(("train", "train", "test")):
            image = f"{category}/Data/Images/Normal/{i:04d}.JPG"
            put(tmp_path, image, i)
            rows.append({"object": category, "split": split, "label": "normal", "image": image, "mask": ""})
        image, mask = (
            f"{category}/Data/{place}/Anomaly/000.{end}" for place, end in (("Images", "JPG"), ("Masks", "png"))
        )
        put(tmp_path, image, 9, mask, value=3)
        rows.append({"object": category, "split": "test", "label": "anomaly", "image": image, "mask": mask})
    write_table(tmp_path / "split_csv" / "1cls.csv", rows)
    found = read("visa", tmp_path)
    assert list(found) == ["candle", "pcb1"]
    assert counts(found["pcb1"]) == {("train", "good"): 2, ("test", "good"): 1, ("test", "anomaly"): 1}
    (tmp_path / "pcb1" / "Data" / "Images" / "Normal" / "0001.JPG").unlink()
    with pytest.raises(DataError, match=r"dataset visa: .*1cls.csv: 1 of its files are not there, first .*0001.JPG"):
        get_source({"name": "visa", "root": str(tmp_path)}).samples("pcb1")


def test_real_iad_by_its_json_with_views_as_groups(tmp_path: Path) -> None:
    document: dict[str, Any] = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [], "test": []}
    for split, kind, scene in (("train", "OK", "S0001"), ("test", "OK", "S0002"), ("test", "BX", "S0001")):
        for view in (1, 2):
            place = f"{'NG/' if kind != 'OK' else ''}{kind}/{scene}"
            image = f"{place}/audiojack_{kind}_C{view}.jpg"
            mask = f"{place}/audiojack_{kind}_C{view}_mask.png" if kind != "OK" else None
            base = "realiad_256/audiojack"
            put(tmp_path, f"{base}/{image}", view, f"{base}/{mask}" if mask else "")
            row = {"category": "audiojack", "anomaly_class": kind, "image_path": image, "mask_path": mask}
            document[split].append(row)
    place = tmp_path / "realiad_jsons" / "realiad_jsons"
    place.mkdir(parents=True)
    (place / "audiojack.json").write_text(json.dumps(document))
    (samples,) = read("real_iad", tmp_path, size=256).values()
    assert counts(samples) == {("train", "good"): 2, ("test", "good"): 2, ("test", "BX"): 2}
    assert [sample.group for sample in samples] == ["OK/S0001"] * 2 + ["OK/S0002"] * 2 + ["NG/BX/S0001"] * 2
    with pytest.raises(DataError, match=r"split 'realiad_json' is not in .*did you mean 'realiad_jsons'"):
        get_source({"name": "real_iad", "root": str(tmp_path), "size": 256, "split": "realiad_json"}).chosen()
    with pytest.raises(DataError, match="has another layout; expected realiad_<size>"):
        get_source({"name": "real_iad", "root": str(tmp_path)}).chosen()  # of another size
    (place / "audiojack.json").write_text('{"train": [1], "test": []}')
    with pytest.raises(DataError, match=r"audiojack.json is none of Real-IAD's: expected train and test"):
        get_source({"name": "real_iad", "root": str(tmp_path), "size": 256}).samples("audiojack")


def test_ksdd2_tells_by_its_masks_and_leaves_the_copy_out(tmp_path: Path) -> None:
    for split, first in (("train", 10300), ("test", 20000)):
        for i in range(3):
            put(tmp_path, f"{split}/{first + i}.png", i, f"{split}/{first + i}_GT.png", 255 * (i == 1))
    put(tmp_path, "train/10301 (copy).png", 1, "train/10301_GT (copy).png")
    (samples,) = read("ksdd2", tmp_path).values()
    assert counts(samples) == {("train", "good"): 2, ("test", "good"): 2, ("test", "defect"): 1}
    assert not [sample for sample in samples if "copy" in sample.path or "GT" in sample.path]


@pytest.mark.parametrize("name", ["mpdd", "btad", "mvtec_ad_2", "mvtec_loco", "visa", "real_iad", "ksdd2"])
def test_another_layout_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"has another layout; expected .*; found other"):
        get_source({"name": name, "root": str(tmp_path)}).chosen()
