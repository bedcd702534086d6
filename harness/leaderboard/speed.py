"""What a model costs to run: throughput as it was measured on each device, and what disturbed it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from harness.disturbance import disturbance
from harness.leaderboard.frame import SPEED, Found, model_key
from harness.records import Record

LABELS = ["model", "method", "backbone", "device", "protocol"]


@dataclass(frozen=True)
class Cost:
    """A number of a bench record that tables can show, the lower the better. `path`: its keys in the result."""

    title: str
    path: tuple[str, ...]
    unit: Literal["number", "count"] = "number"


COSTS = {
    **{
        f"latency_p{percentile}_ms": Cost(
            f"latency p{percentile}\n[ms]", ("single_stream", f"latency_p{percentile}_ms")
        )
        for percentile in (50, 90, 95, 99)
    },
    "peak_device_memory_mib": Cost("device memory\n[MiB]", ("peak_device_memory_mib",)),
    "peak_host_memory_mib": Cost("host memory\n[MiB]", ("peak_host_memory_mib",)),
    "gmac": Cost("GMAC", ("gmac",)),
    "parameters_students": Cost("trained\nparameters", ("parameters_students",), "count"),
}


def speeds(found: Found) -> pd.DataFrame:
    """One line for each model and device that throughput was measured of: `model`, its `method` and `backbone`,
    `device` (with its threads where it is a processor, and `compiled`), `protocol`, `images_per_s`, `disturbed` (by
    what, empty where it was not) and COSTS (NaN where they are not known).

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
        costs = (_at(result, cost.path) for cost in COSTS.values())
        said = disturbance(result)
        lines.append((*labels, device, int(result.get("protocol", 1)), float(result[SPEED]), said, *costs))
    table = pd.DataFrame(lines, columns=[*LABELS, SPEED, "disturbed", *COSTS])
    table = table[table["protocol"] == table["protocol"].max()]
    return table.drop_duplicates(["model", "device"], keep="last", ignore_index=True)


def _weight(bench: Record) -> tuple[bool, str]:
    return not bench.result.get("disturbed"), bench.started_at


def parameters(found: Found) -> dict[str, float]:
    """Trained parameters by model, from trainings: they are known without a measurement."""
    known = (one for one in found.trainings if "precision" in one.result and "parameters_students" in one.result)
    return {model_key(one.spec, one.result): float(one.result["parameters_students"]) for one in known}


def _at(result: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float("nan") if value is None else float(value)
