"""What a model costs to run: throughput as it was measured on each device, and what disturbed it."""

import pandas as pd

from harness.disturbance import disturbance
from harness.leaderboard.frame import SPEED, Found, model_key
from harness.records import Record

LABELS = ["model", "method", "backbone", "device", "protocol"]


def speeds(found: Found) -> pd.DataFrame:
    """One line for each model and device that throughput was measured of: `model`, its `method` and `backbone`,
    `device` (with its threads where it is a processor, and `compiled`), `protocol`, `images_per_s` and `disturbed` (by
    what, empty where it was not).

    Of several measurements the last one counts, but a disturbed one never in place of another; and only those of the
    newest protocol among them.
    """
    lines = []
    for bench in sorted(found.benches, key=_weight):
        spec, result = bench.spec, bench.result
        on_processor = result.get("device_type", "cpu") == "cpu"
        device = f"{spec['device']}, {spec['threads']} threads" if on_processor else spec["device"]
        device += ", compiled" if spec.get("compile") else ""
        labels = (model_key(spec, result), spec["method"]["name"], spec["backbone"])
        lines.append((*labels, device, int(result.get("protocol", 1)), float(result[SPEED]), disturbance(result)))
    table = pd.DataFrame(lines, columns=[*LABELS, SPEED, "disturbed"])
    table = table[table["protocol"] == table["protocol"].max()]
    return table.drop_duplicates(["model", "device"], keep="last", ignore_index=True)


def _weight(bench: Record) -> tuple[bool, str]:
    return not bench.result.get("disturbed"), bench.started_at
