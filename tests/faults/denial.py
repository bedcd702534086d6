"""Modes of files that count for root too: tests may run as root, whom nothing is denied."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2
VERSION = 0x20080522  # of the two calls' structures


@contextmanager
def as_anyone() -> Iterator[None]:
    """Without root's power to read what nobody may: modes count for this thread and those that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
