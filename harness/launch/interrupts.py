"""The signals that tell a supervisor to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# That never count as the second one: SIGUSR1 is a scheduler's warning, which its SIGTERM follows; SIGHUP tells that the
# terminal is gone, and both the kernel and a shell send it.
GENTLE = frozenset({signal.SIGUSR1, signal.SIGHUP})


@contextmanager
def interrupts() -> Iterator[int]:
    """A descriptor that is readable after SIGINT, SIGTERM, SIGHUP or SIGUSR1; the second of the first two raises
    KeyboardInterrupt. A signal that is ignored when it begins stays ignored (`nohup`).
    """
    read_end, write_end = os.pipe()
    count = 0
    hung_up = False

    def note(number: int, _: object) -> None:
        nonlocal count, hung_up
        hung_up |= number == signal.SIGHUP
        count += number not in GENTLE
        if count > 1:
            raise KeyboardInterrupt
        os.write(write_end, b"1")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield read_end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if hung_up:  # one more may come, which must not kill what is left to do
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.close(read_end)
        os.close(write_end)
