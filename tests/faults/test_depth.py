"""Deep pictures, of more than 8 bits a value: one rule for all of a data set, in its id, told by the plan.

Rows: faults.md, section 3.
"""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import DataError
from harness.data.manifest import describe, earlier_manifest
from harness.spec import digest
from tests.conftest import texture, write_mvtec
from tests.faults.commands import harness, refusal
from tests.faults.test_data import IMAGE, WriteGrid, of

pytestmark = pytest.mark.usefixtures("new_cache")


def deep(values: np.ndarray, kind: str = "PNG") -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path, kind)


def ramp(low: float, high: float, kind: type[np.generic]) -> np.ndarray:
    return np.linspace(low, high, 1600).astype(kind).reshape(40, 40)


def mapped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (values.astype(np.float64).clip(low, high) - low) / (high - low)
    return np.rint(255 * share).astype(np.uint8)


U16, I16, I32, F32 = (
    ramp(13_600, 32_800, np.uint16),
    ramp(-500, 900, np.int16),
    ramp(0, 1 << 30, np.int32),
    ramp(0, 1, "f4"),
)


@pytest.mark.parametrize(
    ("write", "keys", "expected"),
    [
        pytest.param(deep(U16), {}, mapped(U16, 0, 65535), id="png-16-bits"),
        pytest.param(deep(U16, "TIFF"), {}, mapped(U16, 0, 65535), id="tiff-16-bits"),
        pytest.param(deep(U16.astype(">u2"), "TIFF"), {}, mapped(U16, 0, 65535), id="tiff-16-bits-big-endian"),
        pytest.param(deep(I32, "TIFF"), {}, mapped(I32, -(2**31), 2**31 - 1), id="tiff-32-bits-signed"),
        pytest.param(deep(U16), {"range": [13600, 32800]}, mapped(U16, 13600, 32800), id="own-range"),
        pytest.param(deep(U16), {"range": [20000, 30000]}, mapped(U16, 20000, 30000), id="own-range-that-clips"),
        pytest.param(deep(F32, "TIFF"), {"range": [0, 1]}, mapped(F32, 0, 1), id="floats"),
    ],
)
def test_deep_pictures_have_one_rule(
    write: Callable[[Path], None], keys: dict[str, object], expected: np.ndarray, tree: Path
) -> None:
    write(tree / IMAGE)
    source = of(tree, **keys)
    pixels = images.load(source, describe(source, "cloth"), 40).train.images[3]
    assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


def tiff(path: Path, content: bytes, bits: int, signed: bool) -> None:
    """An uncompressed grey picture of 40x40; Pillow writes fewer types than it reads."""
    tags = {256: 40, 257: 40, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: 40, 279: len(content)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: 2 if signed else 1}).items()]
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + b"\0" * 4 + content)


def packed(values: np.ndarray) -> bytes:
    """Two values of 12 bits in three bytes."""
    first, second = values.reshape(-1, 2).T.astype(np.uint32)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("<i2", -(2**15), 2**15 - 1),
        ("<u2", 0, 2**16 - 1),
        ("<i4", -(2**31), 2**31 - 1),
        ("<u4", 0, 2**32 - 1),
        (12, 0, 4095),
    ],
)
def test_the_type_is_told_by_the_format_and_not_by_the_pixels(kind: str | int, low: int, high: int, tree: Path) -> None:
    values = ramp(low / 4, high / 2, np.uint16 if kind == 12 else np.dtype(kind))
    bits = 12 if kind == 12 else 8 * values.dtype.itemsize
    tiff(tree / IMAGE, packed(values) if kind == 12 else values.tobytes(), bits, "i" in str(kind))
    source = of(tree)
    pixels = images.load(source, describe(source, "cloth"), 40).train.images[3, :, :, 0]
    assert np.array_equal(pixels, mapped(values, low, high))


def test_ids_move_only_where_a_deep_picture_is(tree: Path) -> None:
    data = describe(of(tree), "cloth")
    rows = {"train": [], "test": []}
    for sample in of(tree).samples("cloth"):
        names = [sample.path, sample.mask] if sample.mask else [sample.path]
        hashes = [sha256(tree / name) for name in names]
        rows[sample.half].append([sample.path, sample.defect, sample.split, sample.group, *hashes])
    assert data.manifest == digest([digest(rows["train"]), 2, "square", 0])
    assert data.test_manifest == digest([digest(rows["test"]), 2, "square", 0])
    earlier = digest(
        [digest(rows["train"] + rows["test"]), 2, "square", 0]
    )  # of both halves, as versions before had it
    assert earlier_manifest(of(tree), "cloth") == earlier
    assert data.options == (("resize", "square"),)
    assert describe(of(tree, range=[0, 4095]), "cloth") == data
    deep(U16)(tree / IMAGE)
    one, same, other = (
        describe(of(tree, **keys), "cloth") for keys in ({}, {"range": [0, 65535]}, {"range": [0, 4095]})
    )
    assert one.manifest == same.manifest != other.manifest
    assert other.options == (("resize", "square"), ("range", "[0, 4095]"))
    assert one.options == data.options


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_deep_masks_own_values_count(tree: Path) -> None:
    mask = np.zeros((40, 40), np.uint16)
    mask[10:20, 5:30] = 1
    deep(mask)(tree / "cloth/ground_truth/hole/000_mask.png")
    fraction = np.where(mask > 0, 0.25, 0).astype(np.float32)
    deep(fraction, "TIFF")(tree / "cloth/ground_truth/hole/001_mask.png")
    source = of(tree)
    category = images.load(source, describe(source, "cloth"), 40)
    assert np.array_equal(category.test.masks[3], mask > 0)
    assert np.array_equal(category.test.masks[4], mask > 0)


def test_the_plan_tells_of_deep_pictures(tree: Path, write_grid: WriteGrid) -> None:
    for i, path in enumerate((tree / "cloth").rglob("good/*.png")):
        deep(np.roll(ramp(1000, 4095, np.uint16), i))(path)
    said = plan_of(write_grid, tree)
    assert (
        "folder cloth: 9 deep pictures, range [0, 65535], values from 1000 to 4095; warning: they fill less than"
        in said
    )
    assert "an eighth of it, write range: [1000, 4095] in the data set's entry" in said
    assert "clipped" not in said
    said = plan_of(write_grid, tree, range=[0, 4000])
    assert "range [0, 4000], values from 1000 to 4095; warning: values of 9 of them lie outside and are clipped" in said
    assert "eighth" not in said
    fitting = plan_of(write_grid, tree, range=[0, 4095])
    assert "clipped" not in fitting
    assert "eighth" not in fitting
    assert "deep" not in plan_of(write_grid, write_mvtec(tree.parent / "flat"))


def plan_of(write_grid: WriteGrid, root: Path, **keys: object) -> str:
    grid = write_grid(root, axes={"dataset": [{"name": "folder", "root": str(root), **keys}]})
    done = harness("plan", "--grid", grid, "--only", "category=cloth")
    assert done.code == 0, done.err
    return " ".join(done.out.split())


@pytest.mark.parametrize("bounds", [[5, 5], [9, 1], [1], "0-255", [0, "inf"]])
def test_a_range_that_cannot_be_is_refused(bounds: object, tree: Path, write_grid: WriteGrid) -> None:
    dataset = {"name": "folder", "root": str(tree), "range": bounds}
    line = refusal("plan", "--grid", write_grid(tree, axes={"dataset": [dataset]}))
    assert "range" in line
    assert "unknown key" not in line


@pytest.mark.parametrize("is_deep", [False, True])
def test_pictures_are_turned_as_exif_says(is_deep: bool, tree: Path) -> None:
    values = ramp(0, 65535, np.uint16) if is_deep else texture(1)[0]
    picture = Image.fromarray(values)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn right by 90 degrees to show
    picture.save(tree / IMAGE, "TIFF" if is_deep else "PNG", exif=exif)
    source = of(tree)
    pixels = images.load(source, describe(source, "cloth"), 40).train.images[3]
    upright = mapped(values, 0, 65535)[:, :, None] if is_deep else values
    assert np.array_equal(pixels, np.broadcast_to(np.rot90(upright, -1), (40, 40, 3)))


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_a_mask_fits_its_image_as_people_see_both(ending: str, tree: Path) -> None:
    """The camera was held upright, the mask was drawn on the picture as it is shown: the files' own sizes differ."""
    image = tree / f"cloth/test/hole/000.{ending}"
    (tree / "cloth/test/hole/000.png").unlink()
    mask = tree / "cloth/ground_truth/hole/000_mask.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(texture(1)[0][:20]).save(image, exif=exif)
    with pytest.raises(DataError, match=r"000_mask.png is 40x40 pixels, its image is 20x40"):
        describe(of(tree), "cloth")
    drawn = np.zeros((40, 20), np.uint8)
    drawn[:10, :5] = 255
    Image.fromarray(drawn).save(mask)
    category = images.load(of(tree), describe(of(tree), "cloth"), 40)
    assert np.array_equal(category.test.masks[3], np.kron(drawn > 0, np.ones((1, 2), bool)))
    turned = np.rot90(np.asarray(Image.open(image).convert("RGB")), 0 if ending == "tif" else -1)
    assert turned.shape == (40, 20, 3)
    resized = Image.fromarray(turned).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(category.test.images[3], np.asarray(resized))
