"""Those who watch a supervisor: the screen, the file for `harness status`."""

import logging
import time
from collections.abc import Callable, Sequence

from harness import events
from harness.job import Job, name_of

OnEvent = Callable[[Job, events.Event], None]
log = logging.getLogger(__name__)
REMIND_S = 60.0  # between two words on what is waited for


class Audience:
    """What is shown or noted can never hurt what is done: a listener that raises is not asked again."""

    def __init__(self, listeners: Sequence[OnEvent]) -> None:
        self.listeners = list(listeners)
        self.reminded = -REMIND_S

    def tell(self, job: Job, event: events.Event) -> None:
        for listener in list(self.listeners):
            try:
                listener(job, event)
            except Exception:
                self.listeners.remove(listener)
                log.exception("`%s` could not be shown; the grid goes on without", type(event).__name__)

    def remind(self, waited_for: Sequence[Job], holder: Callable[[str], str]) -> None:
        """Now and then, while only runs are left that other supervisors have claimed. `holder`: of a run, by its id."""
        if time.monotonic() - self.reminded < REMIND_S:
            return
        self.reminded = time.monotonic()
        first, *others = waited_for
        more = f" and {len(others)} more" if others else ""
        self.tell(first, events.Waiting(f"{name_of(first)}{more}: {holder(first.spec.id)} is at it"))
