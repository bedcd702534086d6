"""What a folder is: layouts, tables, and folders that are told apart by their names; and what its headers say."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from harness import grid  # noqa: F401  (it registers the data sets)
from harness.data import alike, headers
from harness.data.catalog import DataError, Sample, get_source
from harness.data.guess import guess
from harness.data.recognise import recognise
from harness.data.words import word_of
from harness.starter import MOST_AREA, STEP, common_size, image_size
from tests.conftest import save, texture, write_mvtec
from tests.data.test_tables import write_table


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("normal", "good OK iO i.O. gut Gutteile fehlerfrei no_defects ohne-Fehler OK2 bon normal_images"),
        ("abnormal", "bad NG n.i.O. nio schlecht Défauts Ausschuß not_good 02_NOK anomalies Mängel def_front"),
        ("mask", "masks Masken ground_truth GT labels anomaly_mask Annotations"),
        ("", "lid Kratzer 2024-01-07 A 0"),
    ],
)
def test_words_of_folders(word: str, names: str) -> None:
    assert {name: word_of(name) for name in names.split()} == dict.fromkeys(names.split(), word)


def pictures(folder: str, count: int, stem: str = "i", suffix: str = "png") -> list[str]:
    return [f"{folder}/{stem}{k}{'' if '.' in suffix else '.'}{suffix}".lstrip("/") for k in range(count)]


def parts(*categories: str) -> list[str]:
    return [
        name
        for category in categories
        for name in (
            *pictures(f"{category}/ok", 9),
            *pictures(f"{category}/ng/riss", 3, "s"),
            *pictures(f"{category}/gt/riss", 3, "s"),
        )
    ]


FOLDERS = {
    "two": (
        [*pictures("gut", 9), *pictures("schlecht", 3, "s"), *pictures("Fotos", 2, "x")],
        {"normal": "gut", "abnormal": "schlecht"},
    ),
    "dots, and masks of equal names": (
        [*pictures("i.O.", 9), *pictures("n.i.O.", 3, "s"), *pictures("Masken", 3, "s")],
        {"normal": "i.O.", "abnormal": "n.i.O.", "masks": "Masken"},
    ),
    "types of defects": (
        [
            *pictures("gut", 9),
            *pictures("defekt/riss", 3, "s"),
            *pictures("defekt/delle", 3, "s"),
            *pictures("masken/riss", 3, "s", "_mask.png"),
            *pictures("masken/delle", 2, "s", "_mask.png"),
        ],
        {"normal": "gut", "abnormal": "defekt/{defect}", "masks": "masken/{defect}"},
    ),
    "categories": (
        parts("lid", "pipe"),
        {"normal": "{category}/ok", "abnormal": "{category}/ng/{defect}", "masks": "{category}/gt/{defect}"},
    ),
    "categories with words of their own": (
        [*pictures("lid/gut", 9), *pictures("lid/schlecht", 3), *pictures("pipe/ok", 9), *pictures("pipe/nok", 3)],
        {"normal": "{category}/[go]*", "abnormal": "{category}/{defect}"},
    ),
    "train and test, each with both": (
        [
            *pictures("train/ok_front", 9),
            *pictures("train/def_front", 3, "a"),
            *pictures("test/ok_front", 3, "b"),
            *pictures("test/def_front", 3, "c"),
        ],
        {"normal": "train/ok_front", "test_normal": "test/ok_front", "abnormal": "*/def_front"},
    ),
    "a training folder without a word": (
        [*pictures("train", 9), *pictures("test/ok", 3, "x"), *pictures("test/ng", 3, "y")],
        {"normal": "**/train", "test_normal": "**/ok", "abnormal": "**/ng"},
    ),
    "defects beside the normal ones": (
        [*pictures("gut", 9), *pictures("Kratzer", 3, "a"), *pictures("Delle", 3, "b")],
        {"normal": "gut", "abnormal": "{defect}"},
    ),
    "normal ones beside the defects": (
        [*pictures("", 9), *pictures("Defekte", 3, "a")],
        {"normal": "*.*", "abnormal": "Defekte"},
    ),
    "at different depths": (
        [*pictures("gut", 9), *pictures("Linie 2/gut", 9, "a"), *pictures("Linie 2/schlecht", 3, "b")],
        {"normal": "**/gut", "abnormal": "**/schlecht"},
    ),
    "masks beside their images": (
        [*pictures("ok", 9), *pictures("ng", 3, "s", "jpg"), *pictures("ng", 3, "s", "_gt.png")],
        {"normal": "ok", "abnormal": "ng", "masks": "ng/**/{stem}_gt.*"},
    ),
    "masks that differ by their suffix": (
        [*pictures("ok", 9), *pictures("ng", 3, "s", "jpg"), *pictures("ng", 3, "s", "png")],
        {"normal": "ok", "abnormal": "ng/**/*.jpg", "masks": "ng/**/*.png"},
    ),
    "masks below their images, with another name": (
        [*pictures("ok", 9), *pictures("ng", 3, "s"), *pictures("ng/labels", 3, "s", "_label.png")],
        {"normal": "ok", "abnormal": "ng", "masks": "ng/labels/**/{stem}_label.*"},
    ),
    "one folder": (pictures("Bilder", 9), {"normal": "Bilder"}),
}


@pytest.mark.parametrize(("names", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_folders_are_told_apart_by_their_names(names: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    """The patterns are those expected, and on the disk they match what they should: each picture has one role."""
    found = guess(names)
    assert found.patterns == expected
    root = tmp_path / "Teile"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())  # no picture: nothing is opened
    recognised = recognise(str(root))
    assert recognised.entry | {"split_seed": 0} == {"name": "folder", "root": str(root), "split_seed": 0, **expected}
    samples = [sample for each in recognised.samples.values() for sample in each]
    known = {"normal": "good", "abnormal": "bad"}
    for sample in samples:
        words = {known.get(word_of(part), "") for part in Path(sample.path).parts} - {""}
        if words:
            assert sample.anomalous == ("bad" in words)
    used = Counter(name for sample in samples for name in (sample.path, *sample.masks))
    assert set(used.values()) == {1}
    left = set(names) - set(used)
    assert left == {name for name in names if name.startswith("Fotos/")}
    assert any("Fotos (2)" in note for note in found.notes) == bool(left)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*pictures("A", 9), *pictures("B", 3)], "which are not; it holds A (9), B (3). Name them: --normal FOLDER"),
        ([*pictures("images", 9), *pictures("masks", 9)], "Where the masks tell it, write a table with the columns"),
        ([*pictures("ok", 9), *pictures("ok[2]", 3)], "has one of * ? [ ] { } in its name"),
        (
            [*pictures("gut", 5), *pictures("good", 3), *pictures("ok", 3), *pictures("gab", 2), *pictures("ng", 2)],
            "no pattern tells the normal pictures from the others (good (3), gut (5), ok (3))",
        ),
    ],
)
def test_what_names_do_not_tell_is_said(names: list[str], said: str) -> None:
    with pytest.raises(DataError) as refused:
        guess(names)
    assert said in str(refused.value)


def test_masks_that_fit_no_picture_are_left_out_and_said(tmp_path: Path) -> None:
    for name in (*pictures("gut", 9), *pictures("bad", 3, "s"), *pictures("masks", 3, "other")):
        save(tmp_path / name, texture(1)[0])
    found = recognise(str(tmp_path))
    assert "masks" not in found.entry
    assert any("masks are left out" in note and "3 mask(s) without an image" in note for note in found.notes)


def test_a_share_of_few_pictures_gets_a_seed_that_divides_them(tmp_path: Path) -> None:
    """With seed 0 some category would have nothing to test on."""
    for category in range(12):
        for i in range(5):
            save(tmp_path / f"c{category}" / "ok" / f"{i}.png", texture(10 * category + i)[0])
        save(tmp_path / f"c{category}" / "ng" / "x.png", texture(999 + category)[0])
    found = recognise(str(tmp_path))
    assert found.entry["split_seed"] > 0
    source = get_source(found.entry)
    for category in source.chosen():
        assert list(source.samples(category)) == list(found.samples[category])


def test_published_sets_are_known_by_what_reads_them(tmp_path: Path) -> None:
    def named(root: Path) -> str:
        return recognise(str(root)).entry["name"]

    assert named(write_mvtec(tmp_path / "a", "bottle")) == "mvtec_ad"
    assert named(write_mvtec(tmp_path / "b", "tubes")) == "mpdd"
    assert named(write_mvtec(tmp_path / "c", "cloth")) == "folder"
    shutil.rmtree(tmp_path / "a" / "bottle" / "ground_truth")
    assert named(tmp_path / "a") == "folder"  # masks may lack there
    for place in ("train/ok/0.png", "test/ok/1.png", "test/ko/2.png", "ground_truth/ko/2.png"):
        save(tmp_path / "d" / "01" / place, texture(1)[0])
    assert named(tmp_path / "d") == "btad"
    for place in ("train/good/0.png", "validation/good/1.png", "test_public/good/2.png", "test_public/bad/3.png"):
        save(tmp_path / "e" / "vial" / place, texture(1)[0])
    save(tmp_path / "e" / "vial" / "test_public/ground_truth/bad/3_mask.png", texture(1)[1].astype(np.uint8))
    assert named(tmp_path / "e") == "mvtec_ad_2"
    for name in ("train/1.png", "test/2.png", "test/3.png"):
        save(tmp_path / "f" / name, texture(1)[0])
        save(tmp_path / "f" / name.replace(".png", "_GT.png"), texture(1)[1].astype(np.uint8))
    assert named(tmp_path / "f") == "ksdd2"
    (tmp_path / "c" / "cloth" / "test" / "hole" / "001.png").unlink()
    with pytest.raises(DataError, match=r"1 mask\(s\) without an image"):  # its layout leaves no doubt
        recognise(str(tmp_path / "c"))


def test_magnetic_tiles(mtd_root: Path) -> None:
    assert recognise(str(mtd_root)).entry == {"name": "mtd", "root": str(mtd_root)}


def test_a_table_in_the_folder_with_columns_of_its_own(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        name = f"Bilder/{i}.png"
        save(tmp_path / name, texture(i, defect=i > 9)[0])
        rows.append({"Datei": name, "Klasse": "ok" if i < 10 else "Kratzer", "Datum": "heute"})
    file = write_table(tmp_path / "Teile.csv", rows)
    columns = {"path": "Datei", "label": "Klasse"}
    for place in (tmp_path, file):
        found = recognise(str(place))
        assert found.entry == {"name": "table", "file": str(file), "columns": columns, "train_share": 0.8}
        assert {sample.defect for sample in found.samples["Teile"]} == {"good", "Kratzer"}
    file.write_text("a;b\n1;2\n")  # another one is passed over, and said
    found = recognise(str(tmp_path))
    assert found.entry["normal"] == "Bilder"
    assert any("Teile.csv has no column 'path'" in note for note in found.notes)
    with pytest.raises(DataError, match="has no column 'path'"):
        recognise(str(file))


@given(st.integers(20, 5000), st.integers(20, 5000), st.sampled_from([128, 256]))
def test_a_size_keeps_the_aspect(width: int, height: int, short: int) -> None:
    size = image_size(width, height, short)
    rows, columns = size if isinstance(size, tuple) else (size, size)
    assert rows % STEP == columns % STEP == 0
    assert min(rows, columns) <= short
    assert (rows - columns) * (height - width) >= 0
    small, large = sorted((rows, columns))
    assert abs(large - small * max(width, height) / min(width, height)) <= STEP / 2
    assert small == STEP or rows * columns <= 2 * MOST_AREA * short**2
    assert image_size(height, width, short) == (size if rows == columns else (columns, rows))


def test_sizes_of_a_grid() -> None:
    assert image_size(1024, 1024) == 256
    assert image_size(1270, 500) == (256, 640)
    assert image_size(500, 1270) == (640, 256)
    assert image_size(100, 100) == 96
    assert image_size(4000, 100) == (96, 3840)
    assert common_size([(400, 300)] * 8 + [(300, 300)] * 2) == ((256, 352), 0.2)
    assert common_size([]) == (256, 0.0)


def test_headers_say_size_mode_and_which_files_are_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(texture(1)[0]).resize((60, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.full((40, 60), 40000, np.uint16)).save(tmp_path / "deep.png")
    shutil.copy(tmp_path / "grey.png", tmp_path / "again.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:20])
    other = bytearray((tmp_path / "grey.png").read_bytes())
    other[-1] ^= 1  # another file of equal size
    (tmp_path / "other.png").write_bytes(other)
    names = ["turned.jpg", "grey.png", "deep.png", "again.png", "cut.png", "other.png"]
    samples = [Sample(name, "test" if name == "again.png" else "train", "good") for name in names]
    source = get_source({"name": "folder", "root": str(tmp_path)})
    look, failed = headers.first_look(source, "c", samples)
    assert {name: each[1:4] for name, each in look.prints.items()} == {
        "turned.jpg": (40, 60, "RGB"),
        "grey.png": (60, 40, "L"),
        "deep.png": (60, 40, "I;16"),
        "again.png": (60, 40, "L"),
        "other.png": (60, 40, "L"),
    }
    assert [line.split()[0] for line in failed] == ["cut.png"]
    assert look.twice.across == (("grey.png", "again.png"),)
    assert (look.data.train_images, look.data.test_images) == (4, 1)


def test_what_is_nearly_the_same() -> None:
    """Another brightness, contrast and a little noise make no other picture; another draw of the same product does."""
    draw = np.random.default_rng(0)
    product = draw.uniform(60, 120, (32, 32))
    train = {f"train{i}": (product + draw.normal(0, 10, (32, 32))).astype(np.float32) for i in range(40)}
    copies = {f"copy{i}": 1.2 * train[f"train{i}"] + draw.normal(0, 1, (32, 32)) for i in range(5)}
    others = {f"other{i}": product + draw.normal(0, 10, (32, 32)) for i in range(20)}
    test = {name: values.astype(np.float32) for name, values in (copies | others).items()}
    pairs = alike.pairs(train, test)
    assert {(first, second) for first, second, _ in pairs} == {(f"train{i}", f"copy{i}") for i in range(5)}
    assert [bits for *_, bits in pairs] == sorted(bits for *_, bits in pairs)
    assert alike.pairs({}, test) == alike.pairs(train, {}) == []


def test_exposures_of_one_tile_are_nearly_the_same(mtd_root: Path) -> None:
    source = get_source({"name": "mtd", "root": str(mtd_root), "split": "image"})
    samples = [sample for sample in source.samples("magnetic_tile") if not sample.anomalous][::2]
    group = {sample.path: sample.group for sample in samples}
    small = alike.thumbnails(mtd_root, list(group))
    halves = [{s.path: small[s.path] for s in samples if s.half == half} for half in ("train", "test")]
    pairs = alike.pairs(*halves)
    assert len(pairs) > 10
    assert sum(group[train] == group[test] for train, test, _ in pairs) > 0.9 * len(pairs)
