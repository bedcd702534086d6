"""How much of a method's lead is architecture, how much is recipe, and how steady it is: from the records of one grid.

    python benchmarks/recipes.py runs/recipes-mtd [--draws 10000] [--against dskd] > table.md

Reads the results folder of a grid that runs methods under `recipe: [own, common]` on one category and backbone (such as
benchmarks/grids/recipes-mtd.yaml) and trains nothing. Prints Markdown: metrics, paired differences with a bootstrap
over images and seeds, their split into architecture and recipe, steadiness, and the seeds one by one. What is not there
is printed as – and listed. Draws are seeded: the same records give the same text.
"""

import argparse
import sys
from pathlib import Path

from harness.leaderboard.recipes import read
from harness.leaderboard.recipes_page import Page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a results folder, runs/NAME")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--against", default="dskd", help="the method whose lead is taken apart")
    args = parser.parse_args()
    try:
        study = read(args.folder)
        print(Page(study, args.against, args.draws).text(), end="")
    except ValueError as error:
        sys.exit(f"recipes.py: {error}")


if __name__ == "__main__":
    main()
