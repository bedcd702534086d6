"""Workers of these tests compute with one thread: two processes of several threads each on two cores stand in each
other's way, ten times slower and more.
"""

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
