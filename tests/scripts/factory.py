"""A folder of pictures as a factory has it, made from pictures that are at hand.

Two folders, `gut` and `schlecht`, with JPEG and PNG, suffixes in upper case, grey and RGB, 16 bits, turned by EXIF,
umlauts and blanks in names, no masks, and what Windows and a Mac leave beside them.

    python tests/scripts/factory.py TO FROM [--good 120] [--bad 30]

FROM: Magnetic Tile Defects (`MT_Free/Imgs` and the other folders `MT_*/Imgs`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

NAMES = ("IMG_{:04d}.JPG", "Prüfling {:03d}.png", "Teil {:03d} (grau).png", "Teil {:03d} 16 Bit.png", "Öse_{:03d}.jpeg")
TURNED = 6  # EXIF's orientation: to be turned by 90 degrees clockwise


def write(root: Path, good: Sequence[Path], bad: Sequence[Path]) -> Path:
    for folder, pictures in (("gut", good), ("schlecht", bad)):
        place = root / folder
        place.mkdir(parents=True)
        for i, path in enumerate(pictures):
            with Image.open(path) as image:
                save(image.convert("L"), place, i)
        (place / "Thumbs.db").write_bytes(b"no picture")
        (place / ".DS_Store").write_bytes(b"no picture")
        (place / "._IMG_0000.JPG").write_bytes(b"what a Mac leaves")
    return root


def save(grey: Image.Image, place: Path, number: int) -> None:
    """Each fifth picture as one of the kinds."""
    kind = number % len(NAMES)
    target = place / NAMES[kind].format(number)
    if kind == 1:
        grey.convert("RGB").save(target)
    elif kind == 2:
        grey.save(target)
    elif kind == 3:
        Image.fromarray(np.asarray(grey, np.uint16) * 257).save(target)
    elif kind == 4:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = TURNED
        grey.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(target, quality=95, exif=exif)
    else:
        grey.convert("RGB").save(target, quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path)
    parser.add_argument("source", metavar="FROM", type=Path)
    parser.add_argument("--good", type=int, default=120)
    parser.add_argument("--bad", type=int, default=30)
    options = parser.parse_args()
    pictures = sorted(options.source.glob("MT_*/Imgs/*.jpg"))
    good = [path for path in pictures if path.parts[-3] == "MT_Free"]
    bad = [path for path in pictures if path.parts[-3] in ("MT_Blowhole", "MT_Break", "MT_Crack")]
    step = len(bad) // options.bad
    write(options.to, good[:: len(good) // options.good][: options.good], bad[::step][: options.bad])
    print(f"{options.good} good and {options.bad} bad pictures in {options.to}")


if __name__ == "__main__":
    main()
