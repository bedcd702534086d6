"""How many runs share a GPU: what is measured and remembered of it, and what `--runs-per-device auto` makes of it."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd.config import ConfigError
from harness.doctor import findings, sharing
from harness.doctor.findings import Finding, Where, passed, remember, report, skipped
from harness.doctor.proven import SHARING, Mps, Sharing, best, choose, count_of, of_count, rates_of
from harness.launch.sharing import Bound
from harness.run import graphed
from harness.run.recorder import Calls
from tests.faults.commands import refusal

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


FOUND = {"images_per_s": RATES, "images_per_s_with_mps": {}, "made_at": "2026-11-26T12:00:00+00:00"}
WITH_MPS = FOUND | {"images_per_s_with_mps": {"1": 800.0, "2": 1600.0, "4": 3100.0}}
MEMORY = Bound(3, "memory: 14.0 GiB free, a run takes about 4.0 GiB by its records")


def test_auto_says_where_its_number_comes_from() -> None:
    line = "runs per device: 2 (harness doctor on 2026-11-26: images/s in sum by their number 1: 810, 2: 1420, 4: 1450)"
    unproven = "nothing is proven on this GPU with these versions: harness doctor)"
    assert choose(FOUND, "off") == Sharing(2, False, (line, "MPS: none (--no-mps)"))
    assert choose(FOUND, "served") == Sharing(1, False, (f"runs per device: 1 (of more with MPS {unproven}",))
    for damaged in (None, {}, {"images_per_s": 3}, FOUND | {"images_per_s": {"1": None}}, {"images_per_s": RATES}):
        assert choose(damaged, "off") == Sharing(1, False, (f"runs per device: 1 (of more {unproven}",))
    recorded = choose(WITH_MPS, "own", recorded=True)
    assert recorded == Sharing(1, False, (f"runs per device: 1 (of more recorded steps {unproven}",))
    assert choose(WITH_MPS | {"recorded_images_per_s": {"1": 3000.0, "2": 5000.0}}, "own", recorded=True).count == 2


def test_an_own_daemon_is_for_where_it_pays() -> None:
    chosen = choose(WITH_MPS, "own")
    assert (chosen.count, chosen.own) == (4, True)
    assert chosen.lines[1] == (
        "MPS: a daemon of our own for each GPU (harness doctor: images/s in sum of 4 runs 1450, with MPS 3100)"
    )
    assert choose(WITH_MPS, "missing") == Sharing(
        2, False, (choose(FOUND, "off").lines[0], "MPS: none (there is no nvidia-cuda-mps-control on the PATH)")
    )
    served = choose(WITH_MPS, "served")  # more than one by the system's daemon needs no own one
    assert (served.count, served.own, served.lines[1]) == (4, False, "MPS: by the daemon that serves this environment")
    little = WITH_MPS | {"images_per_s_with_mps": {"1": 800.0, "2": 1440.0, "4": 1480.0}}
    assert (choose(little, "own").count, choose(little, "own").own) == (2, False)


@pytest.mark.parametrize(
    ("count", "found", "mps", "own", "says"),
    [
        (1, WITH_MPS, "own", False, ""),
        (2, WITH_MPS, "own", True, "for each GPU (harness doctor: images/s in sum of 2 runs 1420, with MPS 1600)"),
        (3, WITH_MPS, "own", True, "of 2 runs 1420, with MPS 1600)"),
        (48, WITH_MPS, "own", True, "of 4 runs 1450, with MPS 3100)"),
        (49, WITH_MPS, "own", False, "MPS: none (it serves 48 runs of a GPU at most)"),
        (4, WITH_MPS, "off", False, "MPS: none (--no-mps)"),
        (4, WITH_MPS, "missing", False, "MPS: none (there is no nvidia-cuda-mps-control on the PATH)"),
        (4, WITH_MPS, "served", False, "MPS: by the daemon that serves this environment"),
        (4, FOUND, "own", False, "that it pays is not proven on this GPU with these versions: harness doctor)"),
        (4, None, "own", False, "that it pays is not proven on this GPU with these versions: harness doctor)"),
        (
            4,
            WITH_MPS | {"images_per_s": {"1": 800.0, "4": 3000.0}},
            "own",
            False,
            "MPS: none, it does not pay (harness",
        ),
    ],
)
def test_a_number_that_the_user_wants_gets_an_own_daemon_where_it_pays(
    count: int, found: dict[str, object] | None, mps: Mps, own: bool, says: str
) -> None:
    sharing = of_count(found, mps, count)
    assert (sharing.count, sharing.own, len(sharing.lines)) == (count, own, int(bool(says)))
    assert says in "".join(sharing.lines)


def test_the_bound_that_decides_is_named() -> None:
    wide = Bound(9, "cores: 9 for 1 GPU")
    chosen = choose(WITH_MPS, "own", [wide, MEMORY])
    assert (chosen.count, chosen.own) == (2, True)  # three were not tried
    assert chosen.lines[0] == f"runs per device: 2 (harness doctor on 2026-11-26 found 4 best; {MEMORY.why})"
    busy = "pace: the device is about 100% of a step's time at work"
    assert choose(WITH_MPS, "own", [MEMORY, Bound(1, busy)]).lines == (
        f"runs per device: 1 (harness doctor on 2026-11-26 found 4 best; {busy})",
    )
    assert choose(WITH_MPS, "own", [wide]) == choose(WITH_MPS, "own")


def test_what_was_proven_outlives_a_quick_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(findings, "device_name", lambda _: "NVIDIA X")
    where = Where("cuda", 1, tmp_path)

    def look(check: Callable[[Where], Finding]) -> None:
        remember(report(findings.examine([(SHARING, check)], where), where))

    look(lambda _: passed("fast", **{key: value for key, value in WITH_MPS.items() if key != "made_at"}))
    look(lambda _: skipped("quick"))
    assert choose(findings.proven("cuda", SHARING), "off").count == 2
    assert choose(findings.proven("cuda", SHARING), "served").count == 4
    look(lambda _: findings.failed("broken", "mend it"))
    assert choose(findings.proven("cuda", SHARING), "off").count == 1


@pytest.mark.parametrize("wrong", ["0", "65", "many", "-1", "1.5", ""])
def test_what_no_number_of_runs_is_gets_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"--runs-per-device: .* is not possible; write auto or 1 to 64"):
        count_of(wrong)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_the_commands_refuse_it(command: str) -> None:
    told = refusal(command, "benchmarks/grids/quickstart.yaml", "--devices", "cpu", "--runs-per-device", "0")
    assert told == "--runs-per-device: '0' is not possible; write auto or 1 to 64"


def test_a_cpu_is_not_measured(tmp_path: Path) -> None:
    found = sharing.runs_per_device(Where("cpu", 0, tmp_path))
    assert (found.state, found.said) == ("SKIPPED", "on a CPU runs would share its threads, which decide numbers")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Rates of trainings are made up; the environments that they had."""
    around: list[dict[str, str]] = []

    def rate(kind: str, count: int, seconds: float, own: dict[str, str], recorded: bool = False) -> float:
        around.append(dict(own))
        if recorded and count == 4:
            raise RuntimeError("a training beside others ends early: no memory")
        return RATES[str(count)] + 1000 * recorded

    monkeypatch.setattr(sharing, "rate", rate)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    return around


def test_a_gpu_without_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[dict[str, str]]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = sharing.runs_per_device(Where("cuda", 2, tmp_path))
    assert found.said == (
        "images/s in sum by runs at a time 1: 810, 2: 1420, 4: 1450 (best 2); no recorded steps here (a training "
        "beside others ends early: no memory); no MPS here (there is no nvidia-cuda-mps-control)"
    )
    assert found.facts == {"images_per_s": RATES}
    assert {own["CUDA_VISIBLE_DEVICES"] for own in measured} == {"GPU-a"}


def test_a_gpu_with_mps_is_measured_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mps_place: Path, measured: list[dict[str, str]]
) -> None:
    monkeypatch.setattr(sharing, "COUNTS", (1, 2))
    found = sharing.runs_per_device(Where("cuda", 2, tmp_path))
    assert found.said == (
        "images/s in sum by runs at a time 1: 810, 2: 1420 (best 2); recorded 1: 1810, 2: 2420 (best 2); "
        "with MPS 1: 810, 2: 1420 (best 2); recorded with MPS 1: 1810, 2: 2420 (best 2)"
    )
    facts = found.facts | {"made_at": "2026-11-26T12:00:00+00:00"}
    assert rates_of(facts, mps=True, recorded=True) == {1: 1810.0, 2: 2420.0}
    assert rates_of(facts, mps=False) == {1: 810.0, 2: 1420.0}
    assert len({own["CUDA_MPS_PIPE_DIRECTORY"] for own in measured}) == 2


@pytest.mark.slow
def test_runs_beside_each_other_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharing.rate("cpu", 2, 0.2, {}) > 0
    monkeypatch.setattr(sharing.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a training beside others ends early"):
        sharing.rate("cpu", 1, 0.2, {})


@pytest.mark.slow
def test_a_run_by_recorded_steps_tells_its_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what records on a CPU, which only calls the steps; without it the run says why it ends."""
    with pytest.raises(RuntimeError, match="ends early: nothing records steps on a cpu"):
        sharing.rate("cpu", 1, 0.2, {}, recorded=True)
    steps = graphed.WholeSteps(lambda kind: Calls())
    monkeypatch.setattr(graphed, "WholeSteps", lambda: steps)
    monkeypatch.setattr(sys, "argv", ["sharing", "cpu", "0.1", "recorded"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    sharing.main()
    ready, told = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert json.loads(told)["images_per_s"] > 0
