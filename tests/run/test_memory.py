"""Where memory is too small for a batch that is only looked at, a smaller one is taken and the record says so."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd import Distiller, get_method
from harness.data.catalog import DataError
from harness.run.attempt import failure_reason
from harness.run.device import DeviceError, open_device
from harness.run.memory import free_host_bytes, largest_that_fits
from harness.run.throughput import throughput
from harness.spec import BenchSpec
from tests.run.small import SMALL
from tests.run.test_checkpoint import attempt, job_of


def small_memory(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    """A method of the model that takes batches of `most` images."""
    method = getattr(Distiller, name)

    def limited(self: Distiller, images: torch.Tensor, *args: Any, **options: Any) -> Any:
        if len(images) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return method(self, images, *args, **options)

    monkeypatch.setattr(Distiller, name, limited)


def evaluation(grid: Path) -> dict[str, Any]:
    job = job_of(grid, every_s=600.0)
    return attempt(job).record(job.evaluations[0].id).result


def test_an_evaluation_is_that_of_the_batch_that_fits(
    tree: Path, write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = evaluation(write_grid(tree, defaults={"eval.batch_size": 2}))
    small_memory(monkeypatch, "discrepancies", 3)
    lowered = evaluation(write_grid(tree, defaults={"eval.batch_size": 8}))
    assert lowered.pop("lowered_batch_size") == 2
    assert lowered | {"inspect_s": 0} == asked | {"inspect_s": 0}


def test_a_batch_of_one_that_does_not_fit_is_a_failure(
    tree: Path, write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, "discrepancies", 0)
    job = job_of(write_grid(tree))
    failure = attempt(job).last_failure(job.evaluations[0].id)
    assert failure.reason == "out_of_memory"
    assert failure.peak_host_memory_mib > 100  # torch alone


@pytest.mark.parametrize(
    ("error", "lacks_memory"),
    [
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True),
        (DataError(f"image.png: {OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))}"), True),
        (RuntimeError("std::bad_alloc"), True),  # of any C++ library, through torch
        (RuntimeError("could not create a primitive"), True),  # oneDNN's, with no room for a kernel
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), False),
        *[
            (error(text), True)
            for error in (RuntimeError, getattr(torch, "AcceleratorError", RuntimeError), DeviceError)
            for text in (
                "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "GET was unable to find an engine to execute this computation",
                "Unable to find a valid cuDNN algorithm to run convolution",
                "CUDA driver error: out of memory",
                "NCCL error: unhandled cuda error, Last error:\nCuda failure 2 'out of memory'",
            )
        ],
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False),
    ],
)
def test_lack_of_memory_is_known_by_what_the_libraries_say(error: Exception, lacks_memory: bool) -> None:
    assert (failure_reason(error) == "out_of_memory") == lacks_memory


def test_no_room_for_another_thread_is_lack_of_memory() -> None:
    """As metrics meet it in a worker whose address space is limited: else it fails one evaluation after the other."""
    program = (
        "import resource, threading\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))\n"
        "try:\n    threading.Thread().start()\nexcept RuntimeError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert said
    assert failure_reason(RuntimeError(said)) == "out_of_memory"


@pytest.mark.parametrize(
    "error",
    [
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        DeviceError("the GPU cannot be opened: RuntimeError: No CUDA GPUs are available"),
    ],
)
def test_a_failure_of_the_device_is_no_fault_of_the_run(error: Exception) -> None:
    assert failure_reason(error) == "device"


def test_a_device_that_does_not_answer_after_an_error_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failure_reason(ValueError("odd")) == "error"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: 1 / 0)
    assert failure_reason(ValueError("odd")) == "device"


def test_a_gpu_that_cannot_be_opened_has_failed() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="cannot be opened: RuntimeError: a CUDA device was asked for and torch sees"):
        open_device("cuda", "fp32")


@pytest.mark.parametrize(("least", "tried"), [(1, [20, 10, 5, 2]), (5, [20, 10, 5]), (20, [20])])
def test_a_batch_is_halved_while_it_is_not_below_the_least(least: int, tried: list[int]) -> None:
    sizes = []

    def attempt(size: int) -> str:
        sizes.append(size)
        if size > 2:
            raise MemoryError
        return "done"

    if tried[-1] > 2:
        with pytest.raises(MemoryError):
            largest_that_fits(20, attempt, least)
    else:
        assert largest_that_fits(20, attempt, least) == (2, "done")
    assert sizes == tried


def test_throughput_of_the_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, "discrepancies", 3)
    spec = BenchSpec(get_method("stfpm"), SMALL, 32, "fp32", "cpu", 1, batch_sizes=(1, 5, 8), seconds=0.01)
    found = throughput(spec, open_device("cpu", "fp32"))["offline"]
    assert [(batch["batch_size"], batch.get("lowered_from")) for batch in found] == [(1, None), (2, 5)]


MIB = 2**20
MEMINFO = {"proc/meminfo": "MemTotal: 2000000 kB\nMemAvailable: 1024000 kB\n"}  # 1000 MiB
IN_JOB = {
    "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
    "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max",
    "sys/fs/cgroup/slurm/job_7/memory.max": f"{300 * MIB}",
    "sys/fs/cgroup/slurm/job_7/memory.current": f"{250 * MIB}",
    "sys/fs/cgroup/slurm/job_7/memory.stat": f"anon 5\ninactive_file {40 * MIB}\n",
}
IN_CONTAINER = {  # which shows its group as the root
    "proc/self/cgroup": "4:memory,hugetlb:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{400 * MIB}",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{100 * MIB}",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}\n",
}


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        (MEMINFO, 1000),
        (MEMINFO | IN_JOB, 90),
        (MEMINFO | IN_CONTAINER, 320),
        (MEMINFO | {"proc/self/cgroup": "0::/\n"}, 1000),
        (MEMINFO | IN_JOB | {"sys/fs/cgroup/slurm/job_7/memory.current": f"{900 * MIB}"}, 0),
    ],
)
def test_free_memory_is_that_of_the_job(files: dict[str, str], mib: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_host_bytes(tmp_path) == mib * MIB
