"""How steady the throughput protocol is: the same measurement in so many fresh processes, and once beside a load.

    python benchmarks/speed/throughput.py [--repeats 5] [--method stfpm] [--size 256] [--seconds 10]
        [--batch-sizes 1 8 32 64]

Prints Markdown: median, minimum and maximum over the processes of the single-stream latency, the best images/s and the
nested intervals; how near the networks come to the device's own matrix rate; and what the record says of the machine,
alone and while another process computes.
"""

import argparse
import json
import statistics
import subprocess
import sys

import common

from dskd import get_method
from harness.environment import device_name, thread_count
from harness.run.throughput import STAGES
from harness.spec import BenchSpec

BURN = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    common.add_json(parser)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options)))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--once"]

    def once() -> dict[str, object]:
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    found = [once() for _ in range(options.repeats)]
    load = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        beside = once()
    finally:
        load.kill()
    print(f"{options.method}, resnet18, {options.size}x{options.size}, {found[0]['precision']}; {common.machine()}\n")
    print(f"| of {options.repeats} processes | median | lowest | highest | range / median | beside a load |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    table = {}
    for title, read in rows():
        values = [read(one) for one in found]
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle
        table[title] = {"median": middle, "lowest": min(values), "highest": max(values), "beside_load": read(beside)}
        print(f"| {title} | {middle:.4g} | {min(values):.4g} | {max(values):.4g} | {spread:.1%} | {read(beside):.4g} |")
    for one in found:
        for stages in (one["single_stream"]["stages"], one["best_batch_stages"]):
            values = [stages[f"{name}_ms"] for name in STAGES]
            assert values == sorted(values), f"the intervals do not nest: {stages}"
    alone, share = [one["disturbed"] for one in found], 100 * beside["foreign_cpu_share"]
    print(f"\nThe nested intervals rise in all of them. `disturbed`: {alone}, beside a load {beside['disturbed']}")
    print(f"(others took {share:.0f} % of the cores).")
    common.save(options.json, {"table": table, "processes": found, "beside_load": beside})


def rows() -> list[tuple[str, object]]:
    single = [("single-stream p50, ms", lambda one: one["single_stream"]["latency_p50_ms"])]
    single += [("single-stream p99, ms", lambda one: one["single_stream"]["latency_p99_ms"])]
    single += [("offline, the best images/s", lambda one: one["images_per_s"])]
    stages = [
        (f"best batch, {name}, ms", lambda one, name=name: one["best_batch_stages"][f"{name}_ms"]) for name in STAGES
    ]
    return [*single, *stages, ("of the device's matrix rate, %", lambda one: 100 * one["share_of_matrix_rate"])]


def measure(options: argparse.Namespace) -> dict[str, object]:
    from harness.run.device import open_device
    from harness.run.profile import matrix_rate
    from harness.run.throughput import throughput

    model = (get_method(options.method), "resnet18", options.size, "auto", device_name(), thread_count())
    device = open_device("auto", "auto")
    found = throughput(BenchSpec(*model, batch_sizes=tuple(options.batch_sizes), seconds=options.seconds), device)
    flop_per_s = 2e9 * found["gmac"] * found["images_per_s"]
    return found | {"share_of_matrix_rate": flop_per_s / matrix_rate(device)}


if __name__ == "__main__":
    main()
