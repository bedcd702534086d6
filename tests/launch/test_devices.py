"""Which GPUs a machine shows, by a stand-in for NVML: a machine with an NVIDIA driver is never silently a CPU."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dskd.config import ConfigError
from harness import environment
from harness.environment import gpus
from harness.launch.devices import find_slots, kind_of
from harness.launch.worker import cores_of


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """Two GPUs and a MIG device. `broken`: what the start raises; `lost`: indices that do not answer."""

    def __init__(self) -> None:
        super().__init__(NVMLError=NVMLError, broken="", lost=(), count=2)
        self.nvmlInit, self.nvmlShutdown = self.start, lambda: None
        self.nvmlDeviceGetCount = lambda: self.count
        self.nvmlDeviceGetHandleByIndex, self.nvmlDeviceGetHandleByUUID = self.by_index, self.by_uuid
        self.nvmlDeviceGetUUID, self.nvmlDeviceGetName = str, "card {}".format

    def start(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)

    def by_index(self, index: int) -> str:
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return f"GPU-{index}aa"

    def by_uuid(self, uuid: str) -> str:
        if uuid != "MIG-1":
            raise NVMLError("Insufficient Permissions")
        return uuid


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Nvml]:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(environment, "DRIVER", tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    gpus.cache_clear()
    yield fake
    gpus.cache_clear()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-0aa", "GPU-1aa"]),
        ("1", ["GPU-1aa"]),
        ("1,0", ["GPU-1aa", "GPU-0aa"]),
        ("GPU-1", ["GPU-1aa"]),
        ("GPU-1aa, 0", ["GPU-1aa", "GPU-0aa"]),
        ("MIG-1", ["MIG-1"]),
        ("MIG-GPU-0aa/1/0", ["MIG-GPU-0aa/1/0"]),  # nobody may ask for it, CUDA takes it
        ("0,-1,1", ["GPU-0aa"]),
    ],
)
def test_gpus_are_those_that_are_visible(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.visible for slot in find_slots("auto")] == expected


def test_gpus_that_slurm_did_not_give_are_not_taken(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with pytest.raises(ConfigError, match="--devices: SLURM gave 1 of the 2 GPUs here and CUDA_VISIBLE_"):
        find_slots("auto")
    gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot.visible for slot in find_slots("cuda")] == ["GPU-1aa"]
    with pytest.raises(ConfigError, match="--devices: there is no GPU 1; this machine shows 1, from 0"):
        find_slots("cuda:1")


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_mean_the_cpu(nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    nvml.broken = "Driver/library version mismatch"
    assert kind_of("auto") == "cpu"


@pytest.mark.parametrize(
    ("variables", "state", "says"),
    [
        ({"CUDA_VISIBLE_DEVICES": "7"}, {}, r"CUDA_VISIBLE_DEVICES=7 names what is not here \(7\)"),
        ({"CUDA_VISIBLE_DEVICES": "0,GPU-9"}, {}, r"CUDA_VISIBLE_DEVICES=0,GPU-9 names what is not here \(GPU-9\)"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {"lost": (1,)}, r"not here \(1\)"),
        ({"SLURM_JOB_GPUS": "2"}, {"count": 0}, "SLURM_JOB_GPUS=2 names GPUs, and the driver shows none"),
        ({}, {"broken": "version mismatch"}, r"an NVIDIA driver that lists no GPUs \(version mismatch\)"),
        ({}, {"lost": (0, 1)}, r"an NVIDIA driver that lists no GPUs \(GPU is lost\)"),
    ],
)
@pytest.mark.parametrize("devices", ["auto", "cuda"])
def test_a_gpu_machine_is_never_silently_a_cpu(
    nvml: Nvml,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    state: dict[str, object],
    says: str,
    devices: str,
) -> None:
    vars(nvml).update(state)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"--devices: .*{says}.*; write --devices cpu if the CPU is meant"):
        kind_of(devices)
    assert kind_of("cpu") == "cpu"


def test_a_lost_gpu_costs_no_other_one(nvml: Nvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.lost = (0,)
    assert [slot.visible for slot in find_slots("auto")] == ["GPU-1aa"]
    assert "GPU 0 does not answer and is left out: GPU is lost" in caplog.text


def test_a_machine_without_a_driver_is_a_cpu(nvml: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert kind_of("auto") == "cpu"


@pytest.mark.parametrize(
    ("share", "rank", "own", "expected"),
    [
        ((4, 5), 1, {2, 3, 4, 5}, {4, 5}),
        ((0, 1), 0, {8, 9, 10, 11}, {8, 9}),  # dealt on another node
        ((2, 3), 1, {8, 9, 10, 11}, {10, 11}),
        ((2, 3), 1, {8}, {8}),
    ],
)
def test_a_rank_on_another_node_takes_its_share_of_the_cores_there(
    share: tuple[int, ...], rank: int, own: set[int], expected: set[int]
) -> None:
    assert set(cores_of(share, rank, 2, own)) == expected


def test_gpus_get_whole_cores_of_their_own_processor(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processors of two cores with two threads each, numbered as Linux does; GPU 0 hangs on the second one."""
    for cpu in range(8):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (place / "core_id").write_text(f"{cpu % 2}\n")
    monkeypatch.setattr(environment, "TOPOLOGY", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    nvml.nvmlDeviceGetCpuAffinity = lambda handle, words: [0b11001100 if handle == "GPU-0aa" else 0b00110011]
    assert [(slot.name, set(slot.cpus)) for slot in find_slots("cuda")] == [
        ("cuda:0", {2, 6, 3, 7}),
        ("cuda:1", {0, 4, 1, 5}),
    ]
    assert [set(slot.cpus) for slot in find_slots("cpu:4")] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    monkeypatch.setattr(environment, "TOPOLOGY", tmp_path / "gone")
    assert [set(slot.cpus) for slot in find_slots("cpu:4")] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
