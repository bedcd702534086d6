"""What disturbed a measurement of throughput, and which of two was disturbed less. Pure."""

from collections.abc import Mapping
from typing import Any

QUIET = 0.05  # share of the cores that others may take before a measurement counts as disturbed (our choice)
SIGN = "⚠"  # of a disturbed measurement, wherever it is shown


def disturbance(result: Mapping[str, Any]) -> str:
    """`others used 74 % of the CPU`; empty where nothing did.

    Args:
        result: of a bench record.
    """
    if not result.get("disturbed"):
        return ""
    share, processes = result.get("foreign_cpu_share") or 0.0, result.get("foreign_gpu_processes") or 0
    said = [f"others used {100 * share:.0f} % of the CPU"] if share > QUIET else []
    if processes:
        said.append("another process was on the GPU" if processes == 1 else f"{processes} others were on the GPU")
    slowed = _slowed(result)
    if slowed:
        said.append(f"the GPU was slowed down ({', '.join(slowed)})")
    return ", ".join(said) or "something disturbed it"


def is_measured_again(result: Mapping[str, Any], share: float) -> bool:
    """Whether the next call measures it once more: one time in any case, and after that where others take less than
    half of what they took.

    Args:
        share: of the cores, that others take now.
    """
    if not result.get("disturbed"):
        return False
    return result.get("measurements", 1) < 2 or share < (result.get("foreign_cpu_share") or 0.0) / 2


def disturbed_less(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the first of two measurements, as results of bench records, was the quieter one."""
    return _degree(first) < _degree(second)


def _degree(result: Mapping[str, Any]) -> tuple[float, ...]:
    processes, share = result.get("foreign_gpu_processes") or 0, result.get("foreign_cpu_share") or 0.0
    return bool(result.get("disturbed")), processes, len(_slowed(result)), share


def _slowed(result: Mapping[str, Any]) -> list[str]:
    """Why the GPU was slowed down, before or after."""
    states = (result.get(key) or {} for key in ("gpu_before", "gpu_after"))
    return list(dict.fromkeys(reason for state in states for reason in state.get("throttled") or ()))
