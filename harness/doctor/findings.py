"""What a check finds, how checks are run, and what is remembered of a machine. No torch is imported here."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.environment import describe_environment, device_name, utc_now
from harness.files import cache_folder, write_cache
from harness.spec import digest
from harness.text import one_line

State = Literal["PASS", "FAIL", "SKIPPED"]


@dataclass(frozen=True)
class Finding:
    """Of one check.

    Args:
        said: what was seen, with units, or why it was skipped.
        advice: what to do about a failure.
        facts: the same for programs, with units in the keys.
    """

    state: State
    said: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Where:
    """What is examined.

    Args:
        devices: `cpu` or `cuda`; gpus: how many there are.
        folder: for results, which must be fit for them.
        nodes: of the allocation that this is called in.
        quick: within a minute.
    """

    devices: Literal["cpu", "cuda"]
    gpus: int
    folder: Path
    nodes: int = 1
    quick: bool = False


Check = Callable[[Where], Finding]


def passed(said: str, **facts: Any) -> Finding:
    return Finding("PASS", said, facts=facts)


def failed(said: str, advice: str, **facts: Any) -> Finding:
    return Finding("FAIL", said, advice, facts)


def skipped(why: str) -> Finding:
    return Finding("SKIPPED", why)


def examine(checks: Iterable[tuple[str, Check]], where: Where) -> Iterator[Finding]:
    """One finding for each check, as it comes. A check that raises has failed, and costs no other."""
    for name, check in checks:
        began = time.perf_counter()
        try:
            found = check(where)
        except Exception as error:  # whatever is wrong with a machine shows somehow
            reason = one_line(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
            found = failed(reason, "see the message; please report it if it is no fault of the machine")
        yield Finding(found.state, found.said, found.advice, found.facts, name, round(time.perf_counter() - began, 2))


def report(findings: Iterable[Finding], where: Where) -> dict[str, Any]:
    """As plain data: the machine, its versions, and each finding."""
    return {
        "made_at": utc_now(),
        "device": device_name(where.devices),
        "gpus": where.gpus,
        "nodes": where.nodes,
        "quick": where.quick,
        "environment": describe_environment(),
        "findings": [asdict(found) for found in findings],
    }


def remember(document: Mapping[str, Any]) -> Path:
    """Keep what was found of this device with these versions, and of checks that were skipped what they proved before;
    the file. Raises CacheError.
    """
    path = _store(document["device"], document["environment"])
    proofs = (_read(path) or {}).get("proofs")
    proofs = dict(proofs) if isinstance(proofs, dict) else {}
    for found in document["findings"]:
        if found["state"] == "PASS":
            proofs[found["name"]] = {**found["facts"], "made_at": document["made_at"]}
        elif found["state"] == "FAIL":
            proofs.pop(found["name"], None)
    write_cache(path, json.dumps({**document, "proofs": proofs}, indent=1))
    return path


def remembered(device: str) -> dict[str, Any] | None:
    """What was last found of the device with the versions of today; None where nothing was."""
    return _read(_store(device_name(device), describe_environment()))


def proven(device: str, check: str) -> dict[str, Any] | None:
    """The facts of the last time that the check passed on the device with the versions of today, with `made_at`."""
    proofs = (remembered(device) or {}).get("proofs")
    found = proofs.get(check) if isinstance(proofs, dict) else None
    return found if isinstance(found, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _store(device: str, environment: Mapping[str, Any]) -> Path:
    # Another driver or kernel may compute otherwise; another commit of the harness does not change a machine.
    key = digest([device, environment["os"], environment["python"], environment["packages"]["torch"]])
    return cache_folder("doctor") / f"{key}.json"
