"""Whether a job that failed is tried again, and by whom. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

# Reasons that another attempt may not meet again: neither the data nor the recipe will have changed.
RETRIED = frozenset({"crashed", "timeout", "out_of_memory", "device", "interrupted"})
REPLACED = frozenset({"out_of_memory", "device"})  # what caused them may be left in the worker for its next job
DEVICE_FAILURES = 2  # different runs in a row in which a place's device failed, until the place is left out


@dataclass(frozen=True)
class Limits:
    """What a job may cost.

    Args:
        retries: further attempts after a reason of RETRIED.
        timeout_s: seconds of one attempt, None for any.
    """

    retries: int = 1
    timeout_s: float | None = None


def is_tried_again(reasons: Collection[str], tried_again: int, limits: Limits, stopping: bool) -> bool:
    """The verdict on a job of which pieces failed for these reasons.

    Args:
        tried_again: so often it was already.
        stopping: the supervisor was told to end.
    """
    return not stopping and tried_again < limits.retries and not RETRIED.isdisjoint(reasons)
