"""`make bench`: all speed measurements, as a table with the targets beside, on the screen and in benchmarks/results.

    python benchmarks/speed/report.py [--weights RESNET18.safetensors] [--only peers,metrics] [--again]

Each part is a script of this folder that may be called alone; what it measured is kept in build/bench, and a call does
what is missing there. Parts whose targets are a GPU's are only measured there, or where --only names them. The whole
takes an hour and more on two cores, most of it anomalib's.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

from harness.environment import device_name, gpus

HERE = Path(__file__).parent
PARTS = {
    "metrics": ["metrics.py", "--anomalib"],
    "eager": ["training.py"],
    "compiled": ["training.py", "--compile"],
    "scaling": ["scaling.py"],
    "peers": ["peers.py"],
    "inference": ["throughput.py", "--repeats", "3"],
    "dskd": ["training.py", "--method", "dskd"],
    "dskd_inference": ["throughput.py", "--method", "dskd", "--repeats", "3"],
}
GPU_PARTS = ("inference", "dskd", "dskd_inference")
RATES = {  # and their targets in images/s on a GPU
    "eager": ("stfpm training", 5000),
    "dskd": ("dskd training", 2500),
    "inference": ("stfpm inference", 15_000),
    "dskd_inference": ("dskd inference", 8000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of peers.py's teacher; random ones if not given")
    usual = [part for part in PARTS if gpus() or part not in GPU_PARTS]
    parser.add_argument("--only", default=",".join(usual), help="of: " + ", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    parser.add_argument("--work", type=Path, default=common.WORK, help="folder for what is kept")
    options = parser.parse_args()
    for part in options.only.split(","):
        kept = options.work / f"{part}.json"
        if options.again:
            kept.unlink(missing_ok=True)
        if kept.exists() and part != "peers":  # that one goes on by itself
            continue
        more = ["--weights", str(options.weights)] if part == "peers" and options.weights else []
        script, *arguments = PARTS[part]
        print(f"== {script} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, HERE / script, *arguments, *more, "--json", kept], check=True)
    found = {part: json.loads((options.work / f"{part}.json").read_text()) for part in options.only.split(",")}
    text = "\n".join(lines(found))
    print(f"\n{text}")
    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    path = common.ROOT / "benchmarks" / "results" / f"speed-{name}.md"
    path.write_text(text + "\n")
    print(f"\nwritten to {path}")


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """The page: the table of targets, then what each part measured."""
    page = [f"# Speed on {device_name()}", ""]
    page += [f"- {part}: {each['machine']}" for part, each in found.items()]
    page += ["", "Ratios are of runs side by side that took turns; medians.", "", "| what | target | measured |"]
    page += ["| --- | ---: | ---: |", *(f"| {' | '.join(row)} |" for row in targets(found)), ""]
    if not gpus():
        page += ["No GPU was at hand: nothing here says anything about one.", ""]
    hidden = ("machine", "runs", "processes", "beside_load")
    for part, each in found.items():
        page += [f"## {part}: `python benchmarks/speed/{' '.join(PARTS[part])}`", "", "```json"]
        shown = {key: value for key, value in each.items() if key not in hidden or part == "scaling"}
        page += [json.dumps(rounded(shown), indent=1), "```", ""]
    return page


def targets(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    if peers := found.get("peers"):
        setting = peers["runs"][0]["setting"]
        title = "STFPM end to end, {size}x{size}, {images} images, {epochs} epochs".format(**setting)
        ratios = peers["ratio"]
        rows.append((f"{title}, against anomalib 32-true (its default)", "≥ 6", times(ratios["anomalib 32-true"])))
        rows.append(("the same, against anomalib's faster precision", "≥ 3.5", times(min(ratios.values()))))
        for metric in ("image_auroc", "pixel_auroc"):
            mean, half = peers[f"{metric}_difference"]["anomalib 32-true"]
            rows.append(
                (f"{metric} less anomalib's, mean of paired seeds", "0 in interval", f"{mean:+.4f} ± {half:.4f}")
            )
    if metrics := found.get("metrics"):
        for row in metrics["rows"]:
            title = f"all metrics of 100 maps, {row['defective']:.0%} defective, against anomalib's pixel AUROC + AUPRO"
            rows.append((title, "≥ 15", times(row["anomalib_ratio"])))
        worst = max(row["difference"] for row in metrics["rows"])
        rows.append(("largest difference to scikit-learn", "≤ 1e-9", f"{worst:.0e}"))
    for part in ("compiled", "eager"):
        if training := found.get(part):
            target = "≤ 3 %" if part == "compiled" else ""
            rows.append((f"training loop against a bare {part} loop", target, f"{training['overhead']:+.1%}"))
    for part, (title, target) in RATES.items():
        if each := found.get(part):
            rates = each["rates"]["harness"] if "rates" in each else [one["images_per_s"] for one in each["processes"]]
            measured = f"{statistics.median(rates):.0f} images/s"
            if "processes" in each:
                share = statistics.median(one["share_of_matrix_rate"] for one in each["processes"])
                measured += f", {share:.0%} of the matrix rate"
            rows.append((f"{title}, resnet18, 256x256", f"≥ {target} on a GPU", measured))
    if scaling := found.get("scaling"):
        fixed, runs = scaling["fixed"], scaling["runs"]
        rows.append(
            ("second run of a shape in a worker: to its first step", "≤ 0.3 s", f"{fixed['to_first_step_s']:.2f} s")
        )
        few, many = runs[0], runs[-1]
        beside = (many["wall_s"] - few["wall_s"]) / (many["runs"] - few["runs"]) - fixed["computing_s"]
        rows.append((f"grid of {many['runs']} trivial runs, a run beyond its compute", "≤ 0.25 s", f"{beside:.2f} s"))
        for run in scaling["memory"]:
            title = f"peak memory, STFPM, 400 images of 256x256, batch 32, {run['precision']}"
            rows.append((title, "≤ 3 GB", f"{run['peak_host_memory_mib'] * 2**20 / 1e9:.2f} GB"))
    return rows


def times(ratio: float) -> str:
    return f"{ratio:.1f} times"


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
