"""Whether a job that failed is tried again: the table of all cases; and whose fault a failed device is."""

import pytest

from harness.launch.verdict import Cases, Device, Limits, is_tried_again


@pytest.mark.parametrize(
    ("reasons", "tried_again", "retries", "stopping", "again"),
    [
        *[({reason}, 0, 1, False, True) for reason in ("crashed", "timeout", "out_of_memory", "device", "interrupted")],
        *[
            ({reason}, 0, 1, False, False) for reason in ("data", "diverged", "error")
        ],  # the next attempt would meet the same
        (set(), 0, 1, False, False),  # nothing failed
        ({"error", "crashed"}, 0, 1, False, True),  # of several pieces of work one may go better
        ({"crashed"}, 1, 1, False, False),
        ({"crashed"}, 1, 2, False, True),
        ({"crashed"}, 0, 0, False, False),
        ({"interrupted"}, 0, 9, True, False),  # told to end, nothing is begun again
    ],
)
def test_verdict(reasons: set[str], tried_again: int, retries: int, stopping: bool, again: bool) -> None:
    assert is_tried_again(reasons, tried_again, Limits(retries), stopping) is again


def test_only_what_fails_alone_on_a_device_speaks_against_it_and_costs_a_retry() -> None:
    cases, device = Cases(Limits(1)), Device()

    def fail(number: int, shared: bool) -> bool:
        """Whether it is tried again."""
        cases.device_failed(device, number, "stfpm", shared)
        again = cases.is_tried_again(number, ["device"], stopping=False)
        if again:
            cases.count(number)
        return again

    assert all(fail(number, shared=True) for number in range(4))
    assert (cases.suspects, device.doubtful, device.is_broken) == ({0, 1, 2, 3}, True, False)
    assert fail(0, shared=False)  # its first failure for which it may be the reason
    assert not device.is_broken
    assert fail(1, shared=False)  # another one: it is the device, and both have lost nothing by it
    assert device.is_broken
    assert set(cases.attempts.values()) == {0}
    device.unlucky.clear()
    assert fail(0, shared=False)
    assert not fail(0, shared=False)
