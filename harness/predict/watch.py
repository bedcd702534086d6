"""What arrives in folders, until it is stopped. The folders are looked through again and again: what tells of changes
(inotify) is silent about files that other machines write to a network folder.
"""

import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

from harness.predict.gather import Found, once, pictures
from harness.predict.table import key_of

SETTLED_S = 1.0  # a file that did not change for so long is complete
POLL_S = 0.5
SHARE = 3  # looking takes at most a third of the time: a large folder of a slow disk is looked at less often


class Arrivals:
    """Files that have come, each until it is settled. Time is that of this process: clocks of others may be wrong."""

    def __init__(self) -> None:
        self.pending: dict[str, tuple[Found, float]] = {}

    def settled(self, found: Iterable[Found], done: Container[int], now: float) -> list[Found]:
        """Those of a look at the folders that have not changed for SETTLED_S and are not in the table.

        Args:
            found: all that is there; done: keys of the table; now: seconds.
        """
        before, self.pending = self.pending, {}
        ready = []
        for each in found:
            if each.bytes is None or key_of(each) in done:
                continue
            known, since = before.get(each.path, (None, now))
            since = since if known == each else now
            if now - since >= SETTLED_S:
                ready.append(each)
            else:
                self.pending[each.path] = each, since
        return ready


def watch(
    given: Sequence[str],
    apart: Path,
    done: Container[int],
    take: Callable[[list[Found]], None],
    wait: Callable[[float], bool],
    say: Callable[[str], None],
) -> None:
    """Hand what has arrived to `take`, each file once, until `wait` (called with seconds) says that it is over.

    Args:
        given, apart: as of `gather.pictures`; done: keys of the table, to which `take` adds; say: hears of a folder
            that cannot be read; it is looked at again.
    """
    arrivals, said = Arrivals(), ""
    while True:
        began = time.monotonic()
        ready, why = [], ""
        try:
            ready = arrivals.settled(once(pictures(given, apart)), done, began)
        except OSError as error:
            why = f"{error.filename} cannot be read ({error.strerror}); it is tried again"
        took = time.monotonic() - began
        if why and why != said:
            say(why)
        said = why
        if ready:
            take(ready)
        if wait(max(POLL_S, (SHARE - 1) * took)):
            return
