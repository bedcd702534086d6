"""How long the leaderboard takes over many records, and how much memory: a fresh process for each table; and the report
of many runs with a full gallery.

    python benchmarks/speed/leaderboard.py [--records 10000]

The records are made up: 5 methods under 2 recipes on 2 data sets of 10 categories each, as many seeds as it takes; for
the report 500 evaluations of 5 methods on 10 categories, 4 pictures each. Prints seconds of wall clock (imports
included) and peak memory; of the page its size and, where there is a browser, when it is interactive.
"""

import argparse
import importlib.util
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dskd.config import to_mapping
from dskd.methods import METHODS, get_method
from harness.records import Record, Results
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights

ENVIRONMENT = {"packages": {"torch": "2.13.0", "dskd-harness": "0.1.0"}, "commit": "0123456789ab"}
TABLES = ("scores", "aggregate", "stability", "differences", "tests")


def write(folder: Path, count: int) -> int:
    """About `count` records, half of them trainings; how many there are."""
    results, rng = Results(folder), np.random.default_rng(0)
    configs = [get_method(name, recipe) for name in list(METHODS)[:5] for recipe in ("own", "common")]
    places = [(dataset, f"category_{i}") for dataset in ("one", "other") for i in range(10)]
    seeds = range(max(1, count // (2 * len(configs) * len(places))))
    written = 0
    for config, (dataset, category), seed in itertools.product(configs, places, seeds):
        data = Data(dataset, category, f"{dataset}{category}", (("resize", "square"),), 200, 100)
        train = TrainSpec(config, "resnet18", Weights(), data, seed)
        values = dict.fromkeys(("image_ap", "image_f1_max", "pixel_ap", "pixel_f1_max", "aupro_0.05"), 0.5)
        values |= {metric: float(rng.uniform(0.6, 1)) for metric in ("image_auroc", "pixel_auroc", "aupro_0.30")}
        facts = {"precision": "bf16", "device": "a GPU", "device_type": "cuda", "threads": 8, "degenerate": False}
        for spec, result in ((train, facts), (EvaluateSpec(train, config.map, config.score), values | facts)):
            written += results.publish(
                Record(spec.kind, spec.id, to_mapping(spec), result, ENVIRONMENT, "2026-01-01T00:00:00+00:00", 1.0)
            )
    return written


def report(base: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.leaderboard.synthetic import write_results  # of a checkout

    categories = [f"category_{i}" for i in range(10)]
    write_results(base / "runs", list(METHODS)[:5], categories, seeds=10, maps=4, side=128)
    page = base / "report.html"
    started = time.perf_counter()
    command = [sys.executable, "-m", "harness", "report", str(base / "runs"), "--out", str(page)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    pictures = page.read_text().count("data:image/webp")
    print(
        f"report of 500 runs, {pictures} pictures of images, masks and maps: {time.perf_counter() - started:.1f} s, "
        f"peak {usage.ru_maxrss / 1024:.0f} MiB, {page.stat().st_size / 1e6:.1f} MB"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        print("no chromium or no playwright: when it is interactive was not measured")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        found = []
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            found.append(tab.evaluate("performance.getEntriesByType('navigation')[0].domInteractive"))
            tab.close()
        browser.close()
    print(f"interactive in headless Chromium after {' '.join(f'{one:.0f}' for one in found)} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder), args.records)
        print(f"{written} records; seconds of {args.repeats} calls, peak memory of all so far")
        for table in TABLES:
            seconds = []
            for _ in range(args.repeats):
                started = time.perf_counter()
                command = [sys.executable, "-m", "harness", "leaderboard", folder, "--table", table]
                subprocess.run(command, check=True, capture_output=True)
                seconds.append(time.perf_counter() - started)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{table:12} {' '.join(f'{value:.2f}' for value in seconds)} s  {peak:.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder))


if __name__ == "__main__":
    main()
