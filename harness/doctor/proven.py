"""What `auto` means of that which moves no number, by what was proven of this device. No torch is imported."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dskd.config import quoted, require
from harness.doctor.findings import proven
from harness.launch.sharing import Bound
from harness.mps import DAEMON, with_mps

SHARING, GRAPHS = "runs per device", "recorded steps"  # the checks
GAIN = 1.05  # in images per second, from which on more runs at a time are worth their memory (our choice)
MOST = 64
CLIENTS = 48  # that MPS serves on a GPU, by NVIDIA's manual; newer ones may take more


def best(rates: Mapping[int, float]) -> int:
    """The number of runs at a time that gave most images per second in sum, each step up by GAIN or more; else 1."""
    chosen = 1
    for count in sorted(rates):
        if rates[count] >= GAIN * rates.get(chosen, math.inf):
            chosen = count
    return chosen


def count_of(text: str) -> int | None:
    """What `--runs-per-device` says; None for auto.

    Raises:
        ConfigError: it is neither auto nor 1 to MOST.
    """
    if text == "auto":
        return None
    count = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    require(1 <= count <= MOST, f"--runs-per-device: {quoted(text)} is not possible; write auto or 1 to {MOST}")
    return count


Mps = Literal["own", "served", "off", "missing"]


def mps_of(no_mps: bool) -> Mps:
    """By what runs may share a GPU: a daemon that serves this environment already, an own one, or none, since the user
    wants none or the program is not there.
    """
    if with_mps():
        return "served"
    return "off" if no_mps else "own" if shutil.which(DAEMON) else "missing"


@dataclass(frozen=True)
class Sharing:
    """So many runs share a GPU, by MPS daemons of the supervisor's `own` or not; `lines` say why."""

    count: int
    own: bool = False
    lines: tuple[str, ...] = ()


NONE_PROVEN = "nothing is proven on this GPU with these versions: harness doctor"


def choose(found: Mapping[str, Any] | None, mps: Mps, bounds: Sequence[Bound] = (), recorded: bool = False) -> Sharing:
    """What `auto` is on a GPU. Pure.

    Args:
        found: what was proven: by the number of runs `images_per_s` and `images_per_s_with_mps`, the same of steps that
            are recorded with `recorded_` before, and `made_at`.
        bounds: the number of runs is within them.
        recorded: steps of these runs will be.
    """
    plain, shared = rates_of(found, False, recorded), rates_of(found, True, recorded)
    plain, shared = ({}, shared) if mps == "served" else (plain, shared if mps == "own" else {})
    if max(len(plain), len(shared)) < 2:
        how = " recorded steps" * recorded + " with MPS" * (mps == "served")
        return Sharing(1, False, (f"runs per device: 1 (of more{how} {NONE_PROVEN})",))

    def fastest(rates: Mapping[int, float], most: float) -> tuple[float, int]:
        count = best({count: rate for count, rate in rates.items() if count <= most})
        return rates.get(count, 0.0), count

    def decided(most: float) -> tuple[int, bool]:
        (rate, count), (rate_with, count_with) = fastest(plain, most), fastest(shared, most)
        with_it = mps == "served" or (count_with > 1 and rate_with >= GAIN * rate)
        return (count_with if with_it else count), with_it

    least = min(bounds, key=lambda bound: bound.most, default=Bound(MOST, ""))
    (count, with_it), (unbound, _) = decided(least.most), decided(MOST)
    rates, day = shared if with_it else plain, str(found["made_at"])[:10]
    if count < unbound:
        why = f"harness doctor on {day} found {unbound} best; {least.why}"
    else:
        why = f"harness doctor on {day}: {_listed(rates, ' with MPS' * with_it)}"
    own = with_it and mps == "own"
    lines = (f"runs per device: {count} ({why})", *([] if count == 1 else [_mps_line(mps, own, plain, shared, count)]))
    return Sharing(count, own, lines)


def of_count(found: Mapping[str, Any] | None, mps: Mps, count: int, recorded: bool = False) -> Sharing:
    """What a number of runs that the user wants is on a GPU: MPS where it pays. Pure; arguments as of `choose`."""
    if count == 1:
        return Sharing(1)
    plain, shared = rates_of(found, False, recorded), rates_of(found, True, recorded)
    near = max((number for number in plain.keys() & shared.keys() if number <= count), default=1)
    own = mps == "own" and near > 1 and count <= CLIENTS and shared[near] >= GAIN * plain[near]
    line = _mps_line(mps, own, plain, shared, near)
    if mps == "own" and count > CLIENTS:
        line = f"MPS: none (it serves {CLIENTS} runs of a GPU at most)"
    return Sharing(count, own, (line,))


def _mps_line(mps: Mps, own: bool, plain: Mapping[int, float], shared: Mapping[int, float], count: int) -> str:
    """Whether runs share a GPU by MPS, and why."""
    if mps == "served":
        return "MPS: by the daemon that serves this environment"
    if mps == "off":
        return "MPS: none (--no-mps)"
    if mps == "missing":
        return f"MPS: none (there is no {DAEMON} on the PATH)"
    if count not in plain or count not in shared or count == 1:
        return "MPS: none (that it pays is not proven on this GPU with these versions: harness doctor)"
    rates = f"harness doctor: images/s in sum of {count} runs {plain[count]:.0f}, with MPS {shared[count]:.0f}"
    return f"MPS: a daemon of our own for each GPU ({rates})" if own else f"MPS: none, it does not pay ({rates})"


def rates_of(found: Mapping[str, Any] | None, mps: bool, recorded: bool = False) -> dict[int, float]:
    """Images per second in sum by the number of runs; empty where nothing is there that can be read."""
    key = "recorded_" * recorded + "images_per_s" + "_with_mps" * mps
    try:
        return {int(count): float(rate) for count, rate in found[key].items()} if found["made_at"] else {}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _listed(rates: Mapping[int, float], how: str) -> str:
    numbers = ", ".join(f"{count}: {rates[count]:.0f}" for count in sorted(rates))
    return f"images/s in sum{how} by their number {numbers}"


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
