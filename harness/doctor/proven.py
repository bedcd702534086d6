"""What `auto` means of that which moves no number, by what was proven of this device. No torch is imported."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dskd.config import quoted, require
from harness.doctor.findings import proven

SHARING, GRAPHS = "runs per device", "recorded steps"  # the checks
GAIN = 1.05  # in images per second, from which on more runs at a time are worth their memory (our choice)
MOST = 64
PIPES = Path("/tmp/nvidia-mps")  # where CUDA looks for MPS unless CUDA_MPS_PIPE_DIRECTORY says otherwise


def best(rates: Mapping[int, float]) -> int:
    """The number of runs at a time that gave most images per second in sum, each step up by GAIN or more; else 1."""
    chosen = 1
    for count in sorted(rates):
        if rates[count] >= GAIN * rates.get(chosen, math.inf):
            chosen = count
    return chosen


def runs_per_device(text: str, kind: str) -> tuple[int, str]:
    """What `--runs-per-device` means on devices of the kind (cpu or cuda), and for `auto` a line where that comes from.

    Raises:
        ConfigError: it is neither auto nor 1 to MOST.
    """
    if text != "auto":
        count = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
        require(1 <= count <= MOST, f"--runs-per-device: {quoted(text)} is not possible; write auto or 1 to {MOST}")
        return count, ""
    if kind == "cpu":
        return 1, "runs per device: 1 (on a CPU they would share its threads, which decide numbers)"
    return choose(proven(kind, SHARING), with_mps())


def choose(found: Mapping[str, Any] | None, mps: bool) -> tuple[int, str]:
    """The number and the line for a GPU. Pure.

    Args:
        found: what was proven: `images_per_s` and `images_per_s_with_mps` by the number of runs, and `made_at`.
        mps: whether runs will share the GPU by it.
    """
    key, how = ("images_per_s_with_mps", " with MPS") if mps else ("images_per_s", "")
    try:
        rates = {int(count): float(rate) for count, rate in found[key].items()}
        day = str(found["made_at"])[:10]
    except (TypeError, KeyError, ValueError, AttributeError):  # nothing, or nothing that can be read
        rates = {}
    if len(rates) < 2:
        return (
            1,
            f"runs per device: 1 (of more{how} nothing is proven on this GPU with these versions: harness doctor)",
        )
    numbers = ", ".join(f"{count}: {rates[count]:.0f}" for count in sorted(rates))
    measured = f"images/s in sum{how} by their number {numbers}"
    return best(rates), f"runs per device: {best(rates)} (harness doctor on {day}: {measured})"


def graphs(kind: str) -> tuple[tuple[str, ...], str]:
    """The schedules of the rate with which steps recorded as CUDA graphs are proven to be plain ones bit for bit on
    devices of the kind, for `compile: auto`, and on a GPU a line that says so.
    """
    return known(proven(kind, GRAPHS)) if kind == "cuda" else ((), "")


def known(found: Mapping[str, Any] | None) -> tuple[tuple[str, ...], str]:
    """The schedules and the line, for a GPU. Pure.

    Args:
        found: what was proven: `schedules`, and `made_at`.
    """
    schedules = found.get("schedules") if found else None
    equal = tuple(one for one in schedules if isinstance(one, str)) if isinstance(schedules, list) else ()
    if not equal:
        return (), (
            "steps: launched one by one (that recorded ones are the same bit for bit is not proven on this GPU with "
            "these versions: harness doctor)"
        )
    day = str(found.get("made_at"))[:10]
    return equal, f"steps: recorded as CUDA graphs, the same bit for bit (harness doctor on {day}: {', '.join(equal)})"


def with_mps() -> bool:
    """Whether an MPS daemon serves this environment's processes."""
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or PIPES)
    try:
        return Path("/proc", (pipes / "nvidia-cuda-mps-control.pid").read_text().strip() or "none").exists()
    except (OSError, ValueError):
        return False
