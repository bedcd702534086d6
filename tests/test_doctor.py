"""A machine that proves itself: what passes, what fails and with which advice, and that no check costs another."""

import json
import re
from pathlib import Path

import pytest

from harness.doctor import checks, compute, findings, system
from harness.doctor.findings import Where, examine, failed, passed, remember, remembered, report, skipped
from tests.faults.commands import harness, refusal


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where("cpu", 0, tmp_path, quick=True)


def test_a_check_that_raises_costs_no_other(where: Where) -> None:
    def broken(_: Where) -> findings.Finding:
        raise RuntimeError("the\ndriver is gone")

    named = [
        ("one", broken),
        ("two", lambda _: passed("fine", rate_gb_per_s=2.0)),
        ("three", lambda _: skipped("no GPU")),
    ]
    first, second, third = examine(named, where)
    assert (first.state, first.name, first.said) == ("FAIL", "one", "RuntimeError: the driver is gone")
    assert (second.state, second.facts) == ("PASS", {"rate_gb_per_s": 2.0})
    assert (third.state, third.said) == ("SKIPPED", "no GPU")


def test_a_folder_where_names_are_given_twice_is_no_place_for_results(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert system.file_system(where).state == "PASS"
    assert not list(where.folder.iterdir())
    monkeypatch.setattr(system, "publish", lambda path, content: path.write_text(content) > 0)
    found = system.file_system(where)
    assert (found.state, found.said) == ("FAIL", "a name can be given twice")
    assert "--out" in found.advice


def test_a_clock_that_differs_is_told(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    now = system.time.time()
    monkeypatch.setattr(system.time, "time", lambda: now + 3600)
    found = system.file_system(where)
    assert found.state == "FAIL"
    assert "its clock differs by 3600 s" in found.said


def test_an_old_torch_and_few_descriptors_fail_with_what_to_do(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    about = system.describe_environment()
    old = about | {"packages": about["packages"] | {"torch": "2.6.1+cu124"}}
    monkeypatch.setattr(system, "describe_environment", lambda: old)
    assert system.versions(where).advice == "torch 2.7 or newer is needed: pip install -U torch"
    monkeypatch.setattr(system.resource, "getrlimit", lambda _: (256, 8192))
    assert system.descriptors(where).advice == "ulimit -n 4096"


def test_a_training_that_gives_other_bits_is_named(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "IMAGES", 8)  # two steps of an epoch, so that there is one to stop before
    assert compute.same_resumed(where).state == "PASS"
    trained, calls = compute._trained, []

    def other(spec: object, *rest: object) -> str | None:
        calls.append(spec)
        return f"{trained(spec, *rest)}{len(calls) if spec.method.name == 'dskd' else ''}"

    monkeypatch.setattr(compute, "_trained", other)
    found = compute.same_twice(where)
    assert (found.state, found.said) == ("FAIL", "not the same twice: dskd resnet18")


def test_what_was_proven_is_remembered_of_device_and_versions(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    document = report(examine([("one", lambda _: failed("a", "b"))], where), where)
    remember(document)
    assert remembered("cpu")["findings"][0]["advice"] == "b"
    about = findings.describe_environment()
    monkeypatch.setattr(findings, "describe_environment", lambda: about | {"os": "another kernel"})
    assert remembered("cpu") is None


def test_nodes_that_are_not_there_are_refused() -> None:
    assert refusal("doctor", "--nodes", 2) == "--nodes: 2 is not possible, there are 1; ask SLURM for more"


@pytest.mark.slow
def test_this_machine_proves_itself(tmp_path: Path) -> None:
    done = harness(
        "doctor", "--quick", "--devices", "cpu", "--out", tmp_path / "runs", "--json", tmp_path / "found.json"
    )
    assert done.code == 0, done.out + done.err
    assert re.findall(r"^(PASS|FAIL|SKIPPED)", done.out, re.MULTILINE).count("PASS") == 10
    found = json.loads((tmp_path / "found.json").read_text())
    names = [name for name, _ in checks.of(Where("cpu", 0, tmp_path))]
    assert [one["name"] for one in found["findings"]] == names
    assert found["findings"][names.index("processes")]["facts"]["descriptors_added"] == 0
