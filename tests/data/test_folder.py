"""Folders as people have them: masks that lack, patterns, normal images only; what is refused, and what a plan says."""

import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Sample, Source, get_source
from harness.data.manifest import describe
from tests.conftest import ROOT, save, texture
from tests.faults.commands import harness, refusal

WriteGrid = Callable[..., Path]


def of(root: Path, **keys: object) -> Source:
    return get_source({"name": "folder", "root": str(root), **keys})


def kinds(samples: list[Sample]) -> Counter:
    return Counter((sample.split, sample.defect, sample.mask is not None) for sample in samples)


def write(root: Path, *names: str, mask: bool = False, defect: bool = False) -> None:
    """An image of its own under each name, or the mask of the one that has this place in the order."""
    for i, name in enumerate(names):
        image, truth = texture(sum(name.encode()), defect=defect)
        save(root / name, truth.astype(np.uint8) * 255 if mask else image + np.uint8(i))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A factory's folder: `gut` and `defekt` with masks of two of three, in folders of their own."""
    root = tmp_path / "parts"
    write(root, *(f"gut/IMG {i}.{'JPG' if i % 2 else 'png'}" for i in range(20)))
    write(root, "defekt/riss/a.png", "defekt/riss/b.jpg", "defekt/delle/a.png", defect=True)
    write(root, "masken/riss/a_mask.png", "masken/delle/a_mask.png", mask=True, defect=True)
    (root / "gut" / "Thumbs.db").write_bytes(b"no image")
    (root / "gut" / "._IMG 1.JPG").write_bytes(b"what a Mac leaves")
    return root


PATTERNS = {"normal": "gut", "abnormal": "defekt/{defect}", "masks": "masken/{defect}/{stem}_mask.png"}


def dataset(root: Path, **keys: object) -> dict[str, object]:
    return {"axes": {"dataset": [{"name": "folder", "root": str(root), **keys}]}}


def plan_of(grid: Path) -> str:
    done = harness("plan", "--grid", grid)
    assert done.code == 0, done.err
    return " ".join(done.out.split())


def test_masks_may_lack_in_a_folder_of_ones_own(tree: Path, write_grid: WriteGrid) -> None:
    before = describe(of(tree), "cloth")
    (tree / "cloth/ground_truth/hole/001_mask.png").unlink()
    one = describe(of(tree), "cloth")
    assert kinds(of(tree).samples("cloth"))["test", "hole", False] == 1
    said = plan_of(write_grid(tree))
    assert (
        "folder cloth: 6 normal images to train; to test 3 normal and 3 abnormal, 1 of them without a mask: pixel "
        "metrics are over the 5 test images whose truth is known" in said
    )
    shutil.rmtree(tree / "cloth/ground_truth")
    none = describe(of(tree), "cloth")
    assert before.manifest == one.manifest == none.manifest  # a training is of no masks
    assert len({before.test_manifest, one.test_manifest, none.test_manifest}) == 3
    said = plan_of(write_grid(tree))
    assert "to test 3 normal and 3 abnormal without masks: pixel metrics are undefined" in said


def test_an_empty_mask_is_kept_and_said(tree: Path, write_grid: WriteGrid) -> None:
    assert "masks of" not in plan_of(write_grid(tree))
    Image.new("L", (40, 40)).save(tree / "cloth/ground_truth/hole/001_mask.png")
    said = plan_of(write_grid(tree))
    assert "the masks of 1 abnormal images are empty, all their pixels count as normal" in said


def test_masks_of_a_type_that_is_spelt_otherwise_are_not_lost(tree: Path, write_grid: WriteGrid) -> None:
    (tree / "cloth/ground_truth/hole").rename(tree / "cloth/ground_truth/Hole")
    line = refusal("plan", "--grid", write_grid(tree))
    assert "test/hole has no masks and " in line
    assert "ground_truth/Hole no images; give both folders one name" in line


def test_patterns_say_what_is_what(parts: Path) -> None:
    source = of(parts, **PATTERNS)
    (category,) = source.chosen()
    assert category == "parts"
    found = source.samples(category)
    normal = [sample for sample in found if not sample.anomalous]
    assert {sample.path for sample in normal} == {f"gut/IMG {i}.{'JPG' if i % 2 else 'png'}" for i in range(20)}
    assert {(s.path, s.defect, s.mask) for s in found if s.anomalous} == {
        ("defekt/riss/a.png", "riss", "masken/riss/a_mask.png"),
        ("defekt/riss/b.jpg", "riss", None),
        ("defekt/delle/a.png", "delle", "masken/delle/a_mask.png"),
    }
    assert dict(describe(source, category).options) == {
        "resize": "square",
        "test_share": "0.2",
        "split_seed": "0",
    }
    assert describe(of(parts, **PATTERNS), category).train_images == sum(s.split == "train" for s in normal)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("gut", 20),
        ("gut/", 20),
        ("**/IMG*", 20),
        ("gut/*.jpg", 10),  # upper and lower case are the same
        ("*/IMG ?.png", 5),
        ("gut/IMG 1[!0-4].*", 5),
        ("g?t/**/*.png", 10),
        ("gut/**", 20),
    ],
)
def test_globs(pattern: str, count: int, parts: Path) -> None:
    assert len(of(parts, normal=pattern).samples("parts")) == count


def test_categories_defects_groups_and_names_in_two_encodings(tmp_path: Path) -> None:
    lid, pipe = unicodedata.normalize("NFD", "Gehäuse"), "Rohr"
    for category in (lid, pipe):
        write(tmp_path, *(f"{category}/ok/teil{i}_{side}.png" for i in range(12) for side in "ab"))
    write(tmp_path, f"{lid}/nok/Öse.png", f"{pipe}/nok/x.png", defect=True)
    write(tmp_path, f"{lid}/gt/{unicodedata.normalize('NFD', 'Öse')}.png", mask=True, defect=True)
    write(tmp_path, f"{pipe}/gt/x.png", mask=True, defect=True)
    source = of(
        tmp_path,
        normal="{category}/ok/{group}_?.png",
        abnormal="{category}/nok/*",
        masks="{category}/gt/*",
        test_share=0.4,
    )
    assert source.chosen() == ["Gehäuse", "Rohr"]
    for category, mask in (("Gehäuse", True), ("Rohr", True)):
        found = source.samples(category)
        assert [(s.defect, s.mask is not None) for s in found if s.anomalous] == [("abnormal", mask)]
        sides = Counter((sample.group, sample.split) for sample in found if not sample.anomalous)
        assert len(sides) == 12
        assert set(sides.values()) == {2}
        describe(source, category)


def splits(source: Source) -> dict[str, str]:
    return {sample.path: sample.split for sample in source.samples("parts")}


def test_what_is_held_out_follows_content_alone(parts: Path) -> None:
    """One more image, another name or another mask moves no other image between training and test."""
    before = splits(of(parts, **PATTERNS))
    assert {split for path, split in before.items() if path.startswith("gut")} == {"train", "test"}
    write(parts, "gut/new.png", "gut/newer.png", "defekt/riss/new.png")
    after = splits(of(parts, **PATTERNS))
    assert len(after) == len(before) + 3
    assert {path: after[path] for path in before} == before
    (parts / "gut/IMG 0.png").rename(parts / "gut/renamed.png")
    shutil.copy(parts / "gut/renamed.png", parts / "gut/copy.png")
    again = splits(of(parts, **PATTERNS))
    assert again["gut/renamed.png"] == again["gut/copy.png"] == before["gut/IMG 0.png"]
    others = [splits(of(parts, **PATTERNS, split_seed=seed)) for seed in (1, 2)]
    assert others[0] != others[1]
    more = splits(of(parts, **PATTERNS, test_share=0.6))
    held, held_more = ({path for path, split in each.items() if split == "test"} for each in (again, more))
    assert held < held_more  # a larger share holds out what a smaller one did


def test_a_share_that_leaves_nothing_names_a_seed_that_does(parts: Path, write_grid: WriteGrid) -> None:
    for path in sorted((parts / "gut").glob("*.*"))[3:]:
        path.unlink()
    line = refusal("plan", "--grid", write_grid(**dataset(parts, **PATTERNS, test_share=0.05)))
    assert (
        "of the normal images of parts test_share 0.05 and split_seed 0 leave none to train on or none to test" in line
    )
    seed = int(line.rpartition(" ")[2])
    assert splits(of(parts, **PATTERNS, test_share=0.05, split_seed=seed))


def test_normal_images_for_testing_and_none_at_all(parts: Path, write_grid: WriteGrid) -> None:
    source = of(parts, **PATTERNS | {"normal": "gut/*.png"}, test_normal="gut/*.jpg")
    assert kinds(source.samples("parts"))["test", "good", False] == 10
    assert dict(describe(source, "parts").options) == {"resize": "square"}
    assert "parts: 10 normal images to train; to test 10 normal and 3 abnormal, 1 of them" in plan_of(
        write_grid(**dataset(parts, **PATTERNS | {"normal": "gut/*.png"}, test_normal="gut/*.jpg"))
    )
    only = of(parts, normal="gut")
    assert kinds(only.samples("parts")) == {("train", "good", False): 20}
    assert "test_share" not in dict(describe(only, "parts").options)
    said = plan_of(write_grid(**dataset(parts, normal="gut")))
    assert (
        "folder parts: 20 normal images to train; warning: no test images: it is trained and nothing is scored" in said
    )
    assert "1 run (1 training, 0 evaluations)" in said


def test_black_masks_of_normal_images_and_one_that_contradicts(parts: Path, write_grid: WriteGrid) -> None:
    """Some data sets have a mask beside each image; masks are no images then."""
    Image.new("L", (40, 40)).save(parts / "gut/IMG 1_mask.png")
    Image.new("L", (40, 40), 255).save(parts / "defekt/riss/a_mask.png")
    keys = {"normal": "gut", "abnormal": "defekt/riss", "masks": "**/{stem}_mask.png"}
    shutil.rmtree(parts / "masken")
    found = of(parts, **keys).samples("parts")
    assert [(s.path, s.mask) for s in found if s.mask] == [
        ("defekt/riss/a.png", "defekt/riss/a_mask.png"),
        ("gut/IMG 1.JPG", "gut/IMG 1_mask.png"),
    ]
    category = images.load(of(parts, **keys), describe(of(parts, **keys), "parts"), 40)
    assert len(category.train.images) + len(category.test.images) == 22
    truth = {sample.path: mask for sample, mask in zip(category.test.samples, category.test.masks, strict=True)}
    assert truth["defekt/riss/a.png"].all()
    Image.new("L", (40, 40), 1).save(parts / "gut/IMG 1_mask.png")
    line = refusal("plan", "--grid", write_grid(**dataset(parts, **keys)))
    assert "IMG 1.JPG is a normal image, but its mask " in line
    assert plan_of(write_grid(**dataset(parts, **keys, mask_threshold=1)))


REFUSED = [
    pytest.param({"normal": "gtu/*.png"}, "normal: 'gtu/*.png' matches no image", id="misspelt"),
    pytest.param({"normal": "gtu/*.png"}, "did you mean 'gut'? ", id="near-match"),
    pytest.param({"normal": "gtu/*.png"}, "holds defekt, gut, masken", id="what-lies-there"),
    pytest.param({"normal": "gut/*.gif"}, "gut holds IMG 0.png, ", id="no-such-ending"),
    pytest.param({"normal": "gut/*.db"}, "matches no image (.bmp, ", id="no-images"),
    pytest.param({"normal": "*"}, "a.png is matched by normal and by abnormal; let each", id="twice"),
    pytest.param(
        {"normal": "{category}"}, "abnormal: 'defekt/{defect}': either all patterns have {category} or", id="some"
    ),
    pytest.param({"normal": "/gut"}, "patterns are relative to root", id="absolute"),
    pytest.param({"normal": "gut/../defekt"}, "patterns are relative to root", id="out-of-root"),
    pytest.param({"normal": "gut\\*.png"}, "write / between folders", id="backslash"),
    pytest.param({"normal": ""}, "write a pattern such as good/*.jpg", id="empty"),
    pytest.param({"normal": "gut/{stem}.png"}, "one of: category, group (in braces)", id="field-of-masks"),
    pytest.param({"normal": "{categry}/gut"}, "did you mean 'category'", id="field-misspelt"),
    pytest.param({"normal": "gut/{group"}, "a brace is not closed", id="brace"),
    pytest.param({"normal": "gut/**.png"}, "** stands alone", id="stars"),
    pytest.param({"normal": "gut/[z-a]"}, "cannot be read", id="range"),
    pytest.param({"normal": None}, "abnormal needs the pattern of the normal images; write normal", id="no-normal"),
    pytest.param({"abnormal": None}, "masks: they are of abnormal images; write abnormal", id="masks-alone"),
    pytest.param({"abnormal": "defekt"}, "masks: {defect} is not in abnormal", id="field-of-masks-alone"),
    pytest.param({"masks": "masken/{defect}/x*"}, "masks: 'masken/{defect}/x*' matches no image", id="no-masks"),
    pytest.param({"masks": "masken/{defect}/{stem}.png"}, "2 mask(s) without an image, first ", id="mask-alone"),
    pytest.param({"abnormal": "defekt/*", "masks": "masken"}, "fits 2 images, defekt/", id="mask-of-two"),
    pytest.param({"test_share": 1}, "test_share 1 is not possible; write 0.2", id="share"),
    pytest.param({"test_normal": "gut/*.png", "test_share": 0.1}, "test_share goes without test_normal", id="both"),
    pytest.param({"mask_threshold": -1}, "mask_threshold -1: write 0 or more", id="threshold"),
    pytest.param({"abnormals": "x"}, "did you mean 'abnormal'", id="key"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_a_plan_refuses_in_one_line(keys: dict[str, object], words: str, parts: Path, write_grid: WriteGrid) -> None:
    assert words in refusal("plan", "--grid", write_grid(**dataset(parts, **PATTERNS | keys)))


def test_a_category_without_normal_images_is_refused(parts: Path, write_grid: WriteGrid) -> None:
    write(parts, "Kabel/ok/1.png", "kabel/nok/2.png")
    keys = {"normal": "{category}/ok", "abnormal": "{category}/nok"}
    line = refusal("plan", "--grid", write_grid(**dataset(parts, **keys)))
    assert "abnormal has a category 'kabel', which normal has not; is it 'Kabel'?" in line


def test_a_link_that_leads_back_ends(parts: Path) -> None:
    (parts / "gut" / "loop").symlink_to(parts / "gut")
    assert len(of(parts, normal="gut").samples("parts")) == 20
    assert len(of(parts, normal="**/*.jpg").samples("parts")) == 11


KINDS = {  # how a file is written, by its name: what is decoded must be what Pillow shows
    "grau.png": lambda image: image.convert("L"),
    "palette.png": lambda image: image.convert("P"),
    "palette mit loch.png": lambda image: image.quantize(8),
    "schwarzweiß.tif": lambda image: image.convert("1"),
    "durchsichtig.png": lambda image: image.convert("RGBA"),
    "grau durchsichtig.PNG": lambda image: image.convert("LA"),
    "druck.JPG": lambda image: image.convert("CMYK"),
    "druck.tiff": lambda image: image.convert("CMYK"),
    "ycbcr.Jpeg": lambda image: image,
    "lab.tif": lambda image: image.convert("LAB"),
    "hsv bild.bmp": lambda image: image,
    "größe.webp": lambda image: image.resize((61, 23)),
}


def test_every_kind_of_file_is_read_as_people_see_it(tmp_path: Path) -> None:
    root = tmp_path / "Prüfstücke 1"
    (root / "gut").mkdir(parents=True)
    for seed, (name, convert) in enumerate(KINDS.items()):
        extra = {"transparency": 3} if "loch" in name else {}
        convert(Image.fromarray(texture(seed)[0])).save(root / "gut" / name, **extra)
    source = of(root, normal="gut")
    data = describe(source, "Prüfstücke 1")
    assert data.train_images == len(KINDS)
    category = images.load(source, data, 32)
    assert len(category.train.samples) == len(KINDS)
    for sample, pixels in zip(category.train.samples, category.train.images, strict=True):
        with Image.open(root / sample.path) as image:
            expected = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(pixels, np.asarray(expected)), sample.path
        assert pixels.std() > 5, sample.path  # none became black or white
    assert category.test.masks.shape == (0, 32, 32)


def test_the_readmes_patterns_read_such_folders(tmp_path: Path) -> None:
    root = tmp_path / "factory"
    write(root, *(f"good/{i}.png" for i in range(9)), "bad/1.png")
    write(root, *(f"lid/ok/{i}.JPG" for i in range(9)), "lid/ng/dent/1.png")
    write(root, "lid/truth/dent/1_mask.png", mask=True, defect=True)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^dataset: .*(?:\n +.*)*", "\n".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)), re.M)
    entries = [entry for block in blocks for entry in yaml.safe_load(block)["dataset"]]
    plain, named = (
        of(**entry | {"root": root}) for entry in [{k: v for k, v in e.items() if k != "name"} for e in entries]
    )
    assert kinds(plain.samples("factory"))["test", "abnormal", False] == 1
    assert named.chosen() == ["lid"]
    assert kinds(named.samples("lid"))["test", "dent", True] == 1


def turned(image: Image.Image) -> tuple[Image.Image, Image.Exif]:
    """As a camera that was held sideways writes it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to show
    return image.transpose(Image.Transpose.ROTATE_90), exif


def test_one_real_picture_is_the_same_in_every_kind_of_file(mtd_root: Path, tmp_path: Path) -> None:
    """A factory's folder of one magnetic tile, without masks: names, endings, modes, depths and rotations differ."""
    (source_file,) = sorted((mtd_root / "MT_Blowhole" / "Imgs").glob("*.jpg"))[:1]
    tile = Image.open(source_file).convert("L")
    side, exif = turned(tile)
    deep = Image.fromarray(np.asarray(tile).astype(np.uint16) * 257)
    folder = tmp_path / "Magnetkacheln Süd" / "gut, geprüft"
    folder.mkdir(parents=True)
    shutil.copy(source_file, folder / "A 01.JPG")
    for name, image in {
        "b.png": tile,
        "c.PNG": tile.convert("RGB"),
        "d.tif": tile.convert("RGBA"),
        "e.png": deep,
    }.items():
        image.save(folder / name)
    deep.save(folder / "Prüfung 3.tiff")
    tile.convert("P").save(folder / "Kachel.bmp")
    for ending in ("png", "tif", "webp"):
        side.convert("RGB").save(folder / f"gedreht.{ending}", exif=exif, lossless=True)
    source = of(tmp_path / "Magnetkacheln Süd", normal="gut, geprüft")
    half = images.load(source, describe(source, "Magnetkacheln Süd"), 48).train
    assert len(half.images) == 10
    expected = np.asarray(tile.convert("RGB").resize((48, 48), Image.Resampling.BILINEAR))
    for sample, pixels in zip(half.samples, half.images, strict=True):
        assert np.array_equal(pixels, expected), sample.path


def test_a_plan_counts_what_each_category_holds(parts: Path, write_grid: WriteGrid) -> None:
    Image.new("L", (400, 300), 7).save(parts / "gut/IMG 0.png")
    Image.new("RGB", (400, 300), "white").save(parts / "gut/IMG 1.JPG")
    shutil.copy(parts / "gut/IMG 2.png", parts / "gut/IMG 2 copy.png")
    (parts / "defekt/neu.HEIC").write_bytes(b"a telephone's")
    write(parts, "gut alt/a.png", "gut alt/b.png")
    said = plan_of(write_grid(parts, **dataset(parts, **PATTERNS, test_normal="gut alt")))
    assert "│ parts │ parts │ 21 │ 2 │ 3 │ 2 │ 40x40 to 400x300, mostly 40x40 │ RGB 25, grey 1 │" in said
    assert "warning: folder parts: 2 pictures of one colour, first gut/IMG 0.png: is that what the camera saw?" in said
    assert "only 2 normal and 3 abnormal images to test: one pair of them moves image AUROC by 16.7 %" in said
    assert "folder parts: 1 image is there twice, first gut/IMG 2 copy.png and gut/IMG 2.png" in said
    assert "folder: 1 .heic cannot be read, first defekt/neu.HEIC: convert them to .png" in said
    few = dataset(parts, normal="gut/IMG ?.png", abnormal="defekt", test_normal="gut alt")
    assert "warning: folder parts: 5 images to train on: too few to learn" in plan_of(write_grid(parts, **few))


def test_pictures_that_nothing_reads_are_named(tree: Path, write_grid: WriteGrid) -> None:
    assert "not read" not in plan_of(write_grid(tree))
    write(tree, "cloth/train/bad/000.png", "cloth/train/bad/001.png")
    assert "folder: 2 .png are not read, first cloth/train/bad/000.png" in plan_of(write_grid(tree))


def test_the_same_bytes_in_both_splits_are_refused(parts: Path, write_grid: WriteGrid) -> None:
    shutil.copy(parts / "gut/IMG 4.png", parts / "defekt/riss/leer.png")
    grid = write_grid(parts, **dataset(parts, normal="gut", abnormal="defekt"))
    line = refusal("plan", "--grid", grid)
    assert (
        "1 image stands in training and in test with the same bytes, first gut/IMG 4.png and defekt/riss/leer.png"
        in line
    )
    assert "write duplicates: keep in the entry" in line
    kept = {"normal": "gut", "abnormal": "defekt", "duplicates": "keep"}
    assert "warning: folder parts: 1 image stands in training" in plan_of(write_grid(parts, **dataset(parts, **kept)))
    shutil.copy(parts / "defekt/riss/a.png", parts / "ok.png")
    grid = write_grid(parts, **dataset(parts, normal="gut", abnormal="defekt/riss/[ab].*", test_normal="ok.png"))
    assert "1 image is both normal and abnormal with the same bytes, first ok.png and" in refusal(
        "plan", "--grid", grid
    )
