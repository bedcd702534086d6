"""Whether a job that failed is tried again, and what its failure says of the device. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

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


@dataclass
class Device:
    """What the places with the same slots share: a GPU, say, with its driver and with MPS.

    Args:
        unlucky: the runs in a row in which it failed, by number, with their methods.
        doubtful: it failed while several were at work on it: any of them may have ended the others, so it gets one run
            at a time until one succeeds.
    """

    unlucky: dict[int, object] = field(default_factory=dict)
    doubtful: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether it is: one run that fails may itself be what breaks a device's context, wherever it is."""
        return len(self.unlucky) >= DEVICE_FAILURES


class Cases:
    """The jobs of a phase that failed, by number.

    Attributes:
        attempts: so often each was tried again for a reason of its own.
        suspects: those whose device failed while others were at work on it.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.attempts: dict[int, int] = {}
        self.suspects: set[int] = set()

    def is_tried_again(self, number: int, reasons: Collection[str], stopping: bool) -> bool:
        return is_tried_again(reasons, self.attempts.get(number, 0), self.limits, stopping)

    def count(self, number: int, more: int = 1) -> None:
        self.attempts[number] = self.attempts.get(number, 0) + more

    def device_failed(self, device: Device, number: int, method: object, shared: bool) -> None:
        """Whose fault that is shows when run and device are tried without each other, and without the others that
        `shared` the device: until then it costs the run no retry.
        """
        excused = []
        if shared:
            device.doubtful = True
            self.suspects.add(number)
            excused = [number]
        elif not device.is_broken:
            device.unlucky[number] = method
            excused = list(device.unlucky) if device.is_broken else []
        for one in excused:
            self.count(one, -1)
