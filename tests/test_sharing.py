"""How many runs share a GPU: what is measured and remembered of it, and what `--runs-per-device auto` makes of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd.config import ConfigError
from harness.doctor import findings, proven, sharing
from harness.doctor.findings import Finding, Where, passed, remember, report, skipped
from harness.doctor.proven import SHARING, best, choose, runs_per_device
from tests.faults.commands import refusal
from tests.launch.test_faults import until

RATES = {"1": 810.0, "2": 1420.0, "4": 1450.0}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, 1),
        ({2: 100.0}, 1),  # there is nothing to compare it with
        ({1: 100.0, 2: 104.0, 4: 103.0}, 1),
        ({1: 100.0, 2: 105.0, 4: 104.0}, 2),
        ({1: 100.0, 2: 180.0, 4: 188.0}, 2),  # less than 5 % for twice the memory
        ({1: 100.0, 2: 90.0, 4: 130.0}, 4),
    ],
)
def test_more_runs_at_a_time_must_be_worth_it(rates: dict[int, float], expected: int) -> None:
    assert best(rates) == expected


def test_auto_says_where_its_number_comes_from() -> None:
    found = {"images_per_s": RATES, "images_per_s_with_mps": {}, "made_at": "2026-11-26T12:00:00+00:00"}
    line = "runs per device: 2 (harness doctor on 2026-11-26: images/s in sum by their number 1: 810, 2: 1420, 4: 1450)"
    assert choose(found, mps=False) == (2, line)
    unproven = "nothing is proven on this GPU with these versions: harness doctor)"
    assert choose(found, mps=True) == (1, f"runs per device: 1 (of more with MPS {unproven}")
    for damaged in (None, {}, {"images_per_s": 3}, found | {"images_per_s": {"1": None}}, {"images_per_s": RATES}):
        assert choose(damaged, mps=False) == (1, f"runs per device: 1 (of more {unproven}")


def test_what_was_proven_outlives_a_quick_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(findings, "device_name", lambda _: "NVIDIA X")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    where = Where("cuda", 1, tmp_path)

    def look(check: Callable[[Where], Finding]) -> None:
        remember(report(findings.examine([(SHARING, check)], where), where))

    look(lambda _: passed("fast", images_per_s=RATES, images_per_s_with_mps={"1": 800.0, "2": 1600.0}))
    look(lambda _: skipped("quick"))
    assert runs_per_device("auto", "cuda")[0] == 2
    assert runs_per_device("3", "cuda") == (3, "")
    assert runs_per_device("auto", "cpu")[0] == 1
    (tmp_path / f"{sharing.DAEMON}.pid").write_text(str(os.getpid()))
    assert "with MPS by their number 1: 800, 2: 1600" in runs_per_device("auto", "cuda")[1]
    look(lambda _: findings.failed("broken", "mend it"))
    assert runs_per_device("auto", "cuda")[0] == 1


@pytest.mark.parametrize("wrong", ["0", "65", "many", "-1", "1.5", ""])
def test_what_no_number_of_runs_is_gets_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"--runs-per-device: .* is not possible; write auto or 1 to 64"):
        runs_per_device(wrong, "cpu")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_the_commands_refuse_it(command: str) -> None:
    told = refusal(command, "benchmarks/grids/quickstart.yaml", "--devices", "cpu", "--runs-per-device", "0")
    assert told == "--runs-per-device: '0' is not possible; write auto or 1 to 64"


def test_a_cpu_is_not_measured(tmp_path: Path) -> None:
    found = sharing.runs_per_device(Where("cpu", 0, tmp_path))
    assert (found.state, found.said) == ("SKIPPED", "on a CPU runs would share its threads, which decide numbers")


def test_a_gpu_without_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around: list[dict[str, str]] = []
    rates = {1: 810.04, 2: 1420.0, 4: 1450.0}
    monkeypatch.setattr(sharing, "rate", lambda kind, count, seconds, own: (around.append(dict(own)), rates[count])[1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = sharing.runs_per_device(Where("cuda", 2, tmp_path))
    sums = "images/s in sum by runs at a time 1: 810, 2: 1420, 4: 1450"
    assert found.said == f"{sums}; no MPS here (there is no nvidia-cuda-mps-control); best 2"
    assert found.facts == {"images_per_s": RATES, "images_per_s_with_mps": {}}
    assert {own["CUDA_VISIBLE_DEVICES"] for own in around} == {"GPU-a"}


DAEMON = """#!/bin/bash
if [ "$1" = -d ]; then
    exec -a {name} sleep 60 >/dev/null 2>&1 </dev/null &
    echo $! > "$CUDA_MPS_PIPE_DIRECTORY/{name}.pid"
else
    read words
    {quit}
fi
"""


@pytest.mark.parametrize("quit", ['kill $(cat "$CUDA_MPS_PIPE_DIRECTORY"/*.pid)', "exit 1"])
def test_the_daemon_has_ended_after_its_block(quit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it obeys or not, and whatever happens within."""
    (tmp_path / sharing.DAEMON).write_text(DAEMON.format(name=sharing.DAEMON, quit=quit))
    (tmp_path / sharing.DAEMON).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def fail() -> None:
        with sharing.daemon(tmp_path / "own") as around:
            monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", around["CUDA_MPS_PIPE_DIRECTORY"])
            assert proven.with_mps()
            raise RuntimeError("a run fails")

    with pytest.raises(RuntimeError, match="a run fails"):
        fail()
    pid = (tmp_path / "own" / "pipes" / f"{sharing.DAEMON}.pid").read_text().strip()
    command = Path(f"/proc/{pid}/cmdline")
    until(lambda: not command.exists() or not command.read_bytes())  # a zombie has none


@pytest.mark.slow
def test_runs_beside_each_other_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharing.rate("cpu", 2, 0.2, {}) > 0
    monkeypatch.setattr(sharing.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a training beside others ends early"):
        sharing.rate("cpu", 1, 0.2, {})
