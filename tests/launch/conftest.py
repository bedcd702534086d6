"""Workers of these tests compute with one thread: two processes of several threads each on two cores stand in each
other's way, ten times slower and more.
"""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
