"""The field's data sets as they are published: VisA, BTAD, MPDD, MVTec LOCO, MVTec AD 2, Real-IAD, KolektorSDD2.

The layouts follow public readers of these sets, not the sets themselves, which were not at hand: what is uncertain is
said at each. `references` has homepages and licences.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dskd.config import suggest
from harness.data import fingerprints
from harness.data.catalog import GOOD, DataError, Sample, Source, register_dataset
from harness.data.layouts import MVTecAD, folders_in, image_files, pair_masks, relative, wrong_layout
from harness.data.rows import Greatest, Row, Rules, inside, to_samples
from harness.data.tables import Columns, Table


@register_dataset("mpdd")
@dataclass(frozen=True)
class MPDD(MVTecAD):
    """Metal Parts Defect Detection, six categories, in MVTec AD's layout."""


@register_dataset("btad")
@dataclass(frozen=True)
class BTAD(Source):
    """beanTech Anomaly Detection, categories 01, 02, 03: `<category>/{train/ok,test/{ok,ko},ground_truth/ko}`.

    Images and masks are of equal name; their suffixes differ (.bmp and .png). Masks of good images are not read.
    """

    leaves_pictures: ClassVar[bool] = True  # masks of good images
    expected: ClassVar[str] = "<category>/train/ok, <category>/test/{ok,ko}, <category>/ground_truth/ko"

    def available(self) -> list[str]:
        root = self.folder()
        categories = [folder.name for folder in folders_in(root) if (folder / "train" / "ok").is_dir()]
        if not categories:
            raise wrong_layout(self, root, self.expected)
        return categories

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        base, truth = root / category, root / category / "ground_truth" / "ko"
        samples = [Sample(relative(path, root), "train") for path in image_files(base / "train" / "ok", self.name)]
        masks = {path.stem: path for path in image_files(truth, self.name)}
        images = image_files(base / "test" / "ko", self.name)
        samples += pair_masks(self, root, images, masks, "test", "ko", truth / "<image>.png")
        return samples + [Sample(relative(path, root), "test") for path in image_files(base / "test" / "ok", self.name)]


@register_dataset("mvtec_ad_2")
@dataclass(frozen=True)
class MVTecAD2(MVTecAD):
    """The public part of MVTec AD 2: `<category>/{train,validation}/good`, `test_public/{good,bad,ground_truth/bad}`.

    The private test sets have no truth here (a server of MVTec scores them), and are not read. The validation normals
    are the held-out ones of a recipe that selects its epoch on normals.
    """

    leaves_pictures: ClassVar[bool] = True  # of the private test sets
    expected: ClassVar[str] = "<category>/{train,validation}/good, <category>/test_public/{good,bad,ground_truth/bad}"

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        base = root if (root / "train" / GOOD).is_dir() else root / category
        test, truth = base / "test_public", base / "test_public" / "ground_truth" / "bad"
        samples = [Sample(relative(path, root), "train") for path in image_files(base / "train" / GOOD, self.name)]
        samples += [Sample(relative(path, root), "val") for path in image_files(base / "validation" / GOOD, self.name)]
        masks = {path.stem.removesuffix("_mask"): path for path in image_files(truth, self.name)}
        samples += pair_masks(
            self, root, image_files(test / "bad", self.name), masks, "test", "bad", truth / "<image>_mask.png"
        )
        return samples + [Sample(relative(path, root), "test") for path in image_files(test / GOOD, self.name)]


@register_dataset("mvtec_loco")
@dataclass(frozen=True)
class MVTecLOCO(MVTecAD):
    """MVTec LOCO AD: `<category>/{train,validation}/good`, `test/<type>`, `ground_truth/<type>/<image>/NNN.png`.

    An image has several masks, one for each anomaly; a pixel is defective where any of them says so. The set's own
    metric, sPRO with a saturation for each defect (`defects_config.json`), is not computed: AUPRO here is over the
    regions of the union.
    """

    expected: ClassVar[str] = (
        "<category>/{train,validation}/good, <category>/test/<type>, <category>/ground_truth/<type>/<image>/NNN.png"
    )

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        base = root if (root / "train" / GOOD).is_dir() else root / category
        samples = [Sample(relative(path, root), "train") for path in image_files(base / "train" / GOOD, self.name)]
        samples += [Sample(relative(path, root), "val") for path in image_files(base / "validation" / GOOD, self.name)]
        for folder in folders_in(base / "test"):
            images, truth = image_files(folder, self.name), base / "ground_truth" / folder.name
            if folder.name == GOOD:
                samples += [Sample(relative(path, root), "test") for path in images]
                continue
            masks = {place.name: image_files(place, self.name) for place in folders_in(truth)}
            firsts = {name: paths[0] for name, paths in masks.items()}
            paired = pair_masks(self, root, images, firsts, "test", folder.name, truth / "<image>" / "000.png")
            for sample in paired:
                others = tuple(relative(path, root) for path in masks[Path(sample.path).stem][1:])
                samples.append(Sample(sample.path, "test", folder.name, sample.mask, more_masks=others))
        return samples


@register_dataset("visa")
@dataclass(frozen=True)
class VisA(MVTecAD):
    """VisA as it is published, by `split_csv/1cls.csv`, or prepared in MVTec AD's layout (`visa_pytorch`).

    The table has the columns object, split, label (normal, anomaly), image, mask; masks hold small numbers, one for
    each kind of defect, and any above 0 is defective.
    """

    leaves_pictures: ClassVar[bool] = True  # where its table names only some
    expected: ClassVar[str] = (
        "split_csv/1cls.csv and <category>/Data/{Images/{Normal,Anomaly},Masks/Anomaly}, or MVTec AD's"
    )

    def available(self) -> list[str]:
        table = self._table()
        return table.available() if table else super().available()

    def samples(self, category: str) -> list[Sample]:
        table = self._table()
        return table.samples(category) if table else super().samples(category)

    def _table(self) -> Table | None:
        root = self.folder()
        file = root / "split_csv" / "1cls.csv"
        columns = Columns("image", "split", "label", "mask", "object")
        return _As(str(root), file=str(file), columns=columns, called=self.name) if file.is_file() else None


@dataclass(frozen=True)
class _As(Table):
    """A table that speaks of itself by the name of another data set."""

    called: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.called


@register_dataset("real_iad")
@dataclass(frozen=True)
class RealIAD(Source):
    """Real-IAD: `realiad_<size>/<category>/{OK,NG/<type>}/S*/*.jpg` with masks beside, split by `<category>.json`.

    The five views of one object (its folder S*) are a group. `split` names the folder of JSON files: `realiad_jsons`
    (the one-class split) or a variant of it, which may lie within a folder of the first name. Paths in a JSON start
    from the category's folder. Uncertain: whether a view of a defective object that shows no defect is always labelled
    OK; one that is not, and has no mask, counts as defective with a truth that is unknown at the level of pixels. The
    noisy variants (`fuiad`) train on defective images and are refused.
    """

    size: Literal[256, 512, 1024, "raw"] = 1024
    split: str = "realiad_jsons"

    leaves_pictures: ClassVar[bool] = True  # other views and sizes
    expected: ClassVar[str] = "realiad_<size>/<category>/{OK,NG} and realiad_jsons/<category>.json"

    def available(self) -> list[str]:
        root, jsons = self.folder(), self._jsons()
        images = root / f"realiad_{self.size}"
        categories = [path.stem for path in sorted(jsons.glob("*.json")) if (images / path.stem).is_dir()]
        if not categories:
            raise wrong_layout(self, root, self.expected)
        return categories

    def samples(self, category: str) -> list[Sample]:
        root, file = self.folder(), self._jsons() / f"{category}.json"
        about = f"dataset {self.name}: {file}"
        try:
            document = json.loads(file.read_bytes())
            entries = [
                (split, number, each) for split in ("train", "test") for number, each in enumerate(document[split])
            ]
            rows = [_real_iad_row(self, about, split, number, each, category) for split, number, each in entries]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(
                f"{about} is none of Real-IAD's: expected train and test, lists of image_path, mask_path, anomaly_class"
            ) from None
        return to_samples(about, rows, Rules(), _greatest(self, root))

    def _jsons(self) -> Path:
        root = self.folder()
        places = (root / self.split, root / "realiad_jsons" / self.split)
        found = [place for place in places if any(place.glob("*.json"))]
        if not found:
            near = [
                place.name for place in (*folders_in(root), *folders_in(root / "realiad_jsons")) if "json" in place.name
            ]
            if self.split in near or not near:
                raise wrong_layout(self, root, self.expected)
            raise DataError(f"dataset {self.name}: split {self.split!r} is not in {root}; {suggest(self.split, near)}")
        return found[0]


def _real_iad_row(source: RealIAD, about: str, split: str, number: int, entry: dict[str, Any], category: str) -> Row:
    where, base = f"{split} {number + 1}", f"realiad_{source.size}/{category}"
    root = str(source.folder().absolute())
    path = inside(about, where, f"{base}/{entry['image_path']}", root)
    mask = entry.get("mask_path")
    masks = (inside(about, where, f"{base}/{mask}", root),) if mask else ()
    return Row(where, path, split, entry["anomaly_class"], masks, str(Path(path).parent.relative_to(base)))


@register_dataset("ksdd2")
@dataclass(frozen=True)
class KolektorSDD2(Source):
    """KolektorSDD2: `{train,test}/NNNNN.png` with masks `NNNNN_GT.png`; one category.

    An image is defective where its mask is not empty. It is a set for supervised methods: the defective training images
    are left out here. So are `10301 (copy).png` and its mask, which the published archive has by mistake.
    """

    leaves_pictures: ClassVar[bool] = True  # masks of good images, and defective ones that would be trained on
    expected: ClassVar[str] = "train/NNNNN.png and test/NNNNN.png, each with NNNNN_GT.png"

    def available(self) -> list[str]:
        root = self.folder()
        if not all((root / split).is_dir() for split in ("train", "test")):
            raise wrong_layout(self, root, self.expected)
        return ["kolektor"]

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        paired: list[Sample] = []
        for split in ("train", "test"):
            files = [path for path in image_files(root / split, self.name) if not path.stem.endswith("(copy)")]
            masks = {path.stem.removesuffix("_GT"): path for path in files if path.stem.endswith("_GT")}
            images = [path for path in files if not path.stem.endswith("_GT")]
            paired += pair_masks(self, root, images, masks, split, "defect", root / split / "<image>_GT.png")
        tops = _greatest(self, root)([sample.mask for sample in paired if sample.mask])
        found = []
        for sample in paired:
            if tops[sample.mask or ""] <= self.mask_threshold:
                found.append(Sample(sample.path, sample.split))
            elif sample.split == "test":
                found.append(sample)
        return found


def _greatest(source: Source, root: Path) -> Greatest:
    return functools.partial(fingerprints.greatest, root, max_megapixels=source.max_megapixels)
