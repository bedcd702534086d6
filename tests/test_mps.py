"""The MPS daemons of supervisors: started, shared, and ended with the last one, however it ends.

The daemon is `tests/scripts/mps/nvidia-cuda-mps-control`; all else are real processes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import mps
from harness.mps import Daemons, daemon, folder_of, with_mps
from harness.run.device import Device
from tests.conftest import mps_processes as running
from tests.launch.test_faults import until

GPU, OTHER = "GPU-0aa", "GPU-1aa"


@pytest.fixture(autouse=True)
def place(mps_place: Path) -> Path:
    return mps_place


def asked(place: Path) -> list[str]:
    log = place / "log"
    return log.read_text().splitlines() if log.exists() else []


def serves(gpu: str) -> bool:
    return mps._pid(folder_of(gpu) / "pipes") is not None


def test_two_supervisors_share_a_gpus_daemon_and_the_last_one_ends_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Daemons([GPU, OTHER, GPU]) as first:
        assert (sorted(first.pipes), first.failures) == ([GPU, OTHER], {})
        with Daemons([GPU]) as second:
            assert second.pipes[GPU] == first.pipes[GPU] != first.pipes[OTHER]
            assert asked(place) == [f"start {GPU} all", f"start {OTHER} all"] or asked(place) == [
                f"start {OTHER} all",
                f"start {GPU} all",
            ]
            assert not with_mps()
            monkeypatch.setenv(mps.PIPE_DIRECTORY, second.pipes[GPU])
            assert with_mps()
        assert serves(GPU)
        assert serves(OTHER)
        with Daemons([GPU]):  # before the first one leaves
            pass
        assert serves(GPU)
        assert not [line for line in asked(place) if line.startswith("quit")]
    assert asked(place).count("quit -t 5") == 2
    assert not with_mps()


def test_it_ends_with_a_supervisor_that_is_killed(place: Path) -> None:
    code = f"import time; from harness.mps import Daemons; Daemons([{GPU!r}]); print('up', flush=True); time.sleep(60)"
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline() == "up\n"
    with Daemons([GPU]):
        killed.kill()
        killed.communicate()
        guards = [pid for pid in running(place) if b"harness.mps" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        until(lambda: len(running(place)) == 3)  # one guard, the daemon and its server
        assert len(guards) in (1, 2)
        assert serves(GPU)
        killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert killed.stdout.readline() == "up\n"
    assert serves(GPU)
    killed.kill()
    killed.communicate()
    until(lambda: not running(place) and not folder_of(GPU).parent.exists())
    assert asked(place) == [f"start {GPU} all", "quit -t 5"]


def test_signals_end_no_guard_before_its_supervisor(place: Path) -> None:
    """SLURM and terminals send them to all processes of a job."""
    with Daemons([GPU]) as found:
        (guard,) = found._guards.values()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            guard.send_signal(number)
        time.sleep(0.2)
        assert guard.poll() is None
        assert serves(GPU)


def test_what_a_daemon_that_died_has_left_is_taken_over(place: Path) -> None:
    pipes = folder_of(GPU) / "pipes"
    pipes.parent.parent.mkdir(mode=0o700)
    pipes.mkdir(parents=True)
    (pipes / f"{mps.DAEMON}.pid").write_text(str(os.getpid()))  # somebody else has its number by now
    (pipes / "control").touch()
    with Daemons([GPU]) as found:
        assert found.pipes == {GPU: str(pipes)}
        assert not (pipes / "control").exists()
        os.kill(mps._pid(pipes), signal.SIGKILL)  # dies while it is used
        until(lambda: not serves(GPU))
        with Daemons([GPU]):
            assert serves(GPU)
        assert serves(GPU)
    for pid in running(place):  # the server of the one that died has no parent that anybody knows
        os.kill(pid, signal.SIGKILL)
    until(lambda: not running(place))


def test_a_guard_that_is_killed_leaves_nothing_behind(place: Path) -> None:
    with Daemons([GPU]) as found:
        found._guards[GPU].kill()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"FAKE_MPS": "refuses"}, "nvidia-cuda-mps-control does not start, it exits with 1: Cannot use the GPU"),
        ({"PATH": "/nowhere"}, "[Errno 2] No such file or directory: 'nvidia-cuda-mps-control'"),
    ],
)
def test_one_that_does_not_start_says_why(
    variables: dict[str, str], says: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Daemons([GPU]) as found:
        assert (found.pipes, found.failures) == ({}, {GPU: says})


def test_a_folder_that_others_may_write_in_is_not_used(place: Path) -> None:
    folder_of(GPU).parent.mkdir(mode=0o777)
    folder_of(GPU).parent.chmod(0o777)
    with Daemons([GPU]) as found:
        assert found.failures == {GPU: f"{folder_of(GPU).parent} is not this user's alone"}
    assert not asked(place)
    folder_of(GPU).parent.rmdir()


def test_a_path_is_short_enough_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef"
    for parent in ("/tmp", "/scratch/" + "x" * 60):
        monkeypatch.setattr(tempfile, "tempdir", parent)
        for gpu in (uuid, f"MIG-{uuid}/1/0"):
            assert len(str(folder_of(gpu) / "pipes" / "control_privileged")) < 108
            assert folder_of(gpu).parent == Path(f"/tmp/harness-mps-{os.getuid()}")
    assert folder_of(uuid) != folder_of(f"MIG-{uuid}/1/0") != folder_of(f"MIG-{uuid}/1/1")


@pytest.mark.parametrize("how", ["", "deaf"])
def test_the_daemon_has_ended_after_its_block(how: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it obeys or not, and whatever happens within."""
    monkeypatch.setattr(mps, "QUIT_S", 1.0)
    monkeypatch.setenv("FAKE_MPS", how)

    def fail() -> None:
        with daemon(place / "own") as around:
            monkeypatch.setenv(mps.PIPE_DIRECTORY, around[mps.PIPE_DIRECTORY])
            assert with_mps()
            raise RuntimeError("a run fails")

    with pytest.raises(RuntimeError, match="a run fails"):
        fail()
    until(lambda: not running(place))
    assert asked(place)[-1] == "quit -t 1"


def test_a_record_says_whether_a_daemon_served_its_worker(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    kinds = {kind: SimpleNamespace(device=torch.device(kind), num_processes=1) for kind in ("cuda", "cpu")}
    for accelerator in kinds.values():
        accelerator.distributed_type = SimpleNamespace(value="NO")
    with Daemons([GPU]) as found:
        assert "mps" not in Device(kinds["cuda"], "bf16").facts()
        monkeypatch.setenv(mps.PIPE_DIRECTORY, found.pipes[GPU])
        assert Device(kinds["cuda"], "bf16").facts()["mps"] is True
        assert "mps" not in Device(kinds["cpu"], "fp32").facts()
    assert "mps" not in Device(kinds["cuda"], "bf16").facts()
