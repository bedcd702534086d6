"""The machine, as the page names it."""

import os
import resource
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from harness.environment import cpu_name, describe_environment


def about(kind: str) -> dict[str, Any]:
    """Device, driver, versions, cores, date, commit; `kind`: cuda or cpu."""
    import torch

    environment = describe_environment()
    found = {
        "device": torch.cuda.get_device_name() if kind == "cuda" else cpu_name(),
        "kind": kind,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": environment["commit"] or "unknown",
        "python": environment["python"],
        "packages": environment["packages"],
        "processor": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    return found | (_card(torch) if kind == "cuda" else {})


def _card(torch: Any) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "multiprocessors": facts.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    with suppress(Exception):
        import triton

        found["triton"] = triton.__version__
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return found
