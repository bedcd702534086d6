"""Which checks there are, in their order."""

from harness.doctor import compute, ranks, recorded, sharing, system
from harness.doctor.findings import Check, Where
from harness.doctor.proven import GRAPHS, SHARING


def of(where: Where) -> list[tuple[str, Check]]:
    """What is cheap and spoils everything comes first."""
    return [
        ("versions", system.versions),
        ("memory", system.memory),
        ("open files", system.descriptors),
        ("results folder", system.file_system),
        ("other nodes", system.other_nodes),
        ("devices", compute.devices),
        ("rates", compute.rates),
        ("same twice", compute.same_twice),
        ("same resumed", compute.same_resumed),
        (GRAPHS, recorded.recorded_steps),
        (SHARING, sharing.runs_per_device),
        ("processes", ranks.together),
        ("a killed one", ranks.killed),
        ("DeepSpeed", ranks.deepspeed),
    ]
