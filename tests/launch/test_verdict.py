"""Whether a job that failed is tried again: the table of all cases."""

import pytest

from harness.launch.verdict import Limits, is_tried_again


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
