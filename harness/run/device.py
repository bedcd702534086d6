"""The device of a worker: which one, at which precision, under which Accelerator, with which other processes."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from harness.environment import cpu_flags, cpu_name, openmp_waiting, thread_count
from harness.mps import with_mps
from harness.run.processes import PATIENCE, accelerator_of, expected_type
from harness.spec import STEP, Strategy

T = TypeVar("T")


class DeviceError(RuntimeError):
    """A GPU cannot be opened."""


_OF_DEVICES = (DeviceError, getattr(torch, "AcceleratorError", DeviceError))  # that of torch is of 2.8


def is_device_failure(error: BaseException) -> bool:
    """Whether the device failed, or this process's context on it: after an illegal access, an assert or the loss of the
    GPU every later call fails too. Asks the GPU, since the error may be of what came after.
    """
    if isinstance(error, _OF_DEVICES) or "CUDA error" in str(error):
        return True
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except Exception:
            return True
    return False


@dataclass(frozen=True)
class Device:
    """Where a work runs: this process's device, and the other processes (ranks) of the same run, if it has any.

    What moves data between ranks (`share`, `sum`, `gather`, `agree`, `most`, `everyones`, `wait`) is called by all of
    them in the same order, and does nothing in a run of one process.

    Attributes:
        precision: the resolved one (fp32, tf32 or bf16), never `auto`.
    """

    accelerator: Accelerator
    precision: str
    strategy: Strategy = "ddp"

    @property
    def place(self) -> torch.device:
        return self.accelerator.device

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.accelerator.is_main_process

    def share(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers that rank 0 has."""
        if self.processes > 1:
            for tensor in module.state_dict().values():
                received = tensor.contiguous()
                torch.distributed.broadcast(received, 0)
                tensor.copy_(received)

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the ranks, in place; each has the result."""
        if self.processes > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape, by rank; empty on the ranks but 0."""
        if self.processes == 1:
            return [tensor]
        found = (
            [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.processes)]
            if self.main
            else None
        )
        torch.distributed.gather(tensor.contiguous(), found)
        return found or []

    def agree(self, value: T) -> T:
        """Rank 0's value, for all."""
        values = [value]
        if self.processes > 1:
            torch.distributed.broadcast_object_list(values, 0, device=self.place)
        return values[0]

    def most(self, value: int) -> int:
        """The largest of the ranks' values, for all; it does not wait for the device."""
        if self.processes == 1:
            return value
        values = torch.tensor(value)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return int(values)

    def everyones(self, value: T) -> list[T]:
        """Each rank's value, by rank, for all. What is in it lies on the host."""
        values = [value] * self.processes
        if self.processes > 1:
            torch.distributed.all_gather_object(values, value, group=self._hosts)
        return values

    @property
    def _hosts(self) -> torch.distributed.ProcessGroup | None:
        """The ranks over gloo, which reads and writes on the host; None where the default group does that already."""
        return None if self.place.type == "cpu" else hosts_group()

    def wait(self) -> None:
        """For all ranks to come here. On the host: through nccl those that wait would keep GPU and processor busy."""
        if self.processes > 1:
            torch.distributed.barrier(group=self._hosts)

    @contextmanager
    def one_on_each_node_first(self) -> Iterator[None]:
        """The first rank of each node does what is within before the others do."""
        first = self.accelerator.is_local_main_process
        if not first:
            self.wait()
        yield
        if first:
            self.wait()

    def autocast(self) -> torch.autocast:
        return autocast(self.place.type, self.precision)

    @property
    def steps(self) -> dict[str, int]:
        """For a training's record and its checkpoints: which steps it is of. On a CPU there is one kind only."""
        return {"step": STEP} if self.place.type == "cuda" else {}

    def facts(self) -> dict[str, object]:
        """For a record: the device's name, what `auto` became, threads (of each process) and how they wait."""
        kind = self.place.type
        waiting = openmp_waiting() if kind == "cpu" else None
        share = os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")  # fewer multiprocessors: other kernels
        together = {"processes": self.processes, "distributed_type": self.accelerator.distributed_type.value}
        return {
            "device": torch.cuda.get_device_name() if kind == "cuda" else cpu_name(),
            "device_type": kind,
            "precision": self.precision,
            "threads": thread_count(),
            **({"waiting": waiting} if waiting else {}),
            **({"mps": True} if kind == "cuda" and with_mps() else {}),
            **({"mps_thread_percentage": share} if kind == "cuda" and share else {}),
            **(together if self.processes > 1 else {}),
        }

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize()


def autocast(kind: str, precision: str) -> torch.autocast:
    """Of a kind of device, at a resolved precision."""
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


@functools.cache
def hosts_group() -> torch.distributed.ProcessGroup:
    """All ranks over gloo: one group for the life of the process, since each has threads and sockets of its own."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def resolve_precision(precision: str, device_type: str) -> str:
    """`auto` is bf16 where the hardware multiplies it fast, else fp32; the record says which it became.

    On a CPU that is AMX, or AMD's avx512_bf16; Intel's without AMX is slower than fp32 (0.65 of its rate, measured).
    """
    if precision == "tf32" and device_type != "cuda":
        raise ValueError("precision tf32 needs a CUDA device; write precision: fp32")
    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    fast = "amx_bf16" in cpu_flags() or ("avx512_bf16" in cpu_flags() and "AMD" in cpu_name())
    return "bf16" if fast else "fp32"


def open_device(device: str, precision: str, processes: int = 1, strategy: Strategy = "ddp") -> Device:
    """The worker's Accelerator for the next work, with the determinism that bit-equality is promised under.

    Args:
        device: `auto`, `cpu` or `cuda`.
        processes: of the run; this one was started with so many by a launcher (torchrun's environment variables).

    Raises:
        RuntimeError: the launcher started another number of processes, or Accelerate gave another number, strategy,
            device or precision than asked for (it does so silently). On a GPU a DeviceError, of whatever went wrong.
    """
    try:
        return _open(device, precision, processes, strategy)
    except Exception as error:
        if device != "cuda" and not torch.cuda.is_available():
            raise
        raise DeviceError(f"the GPU cannot be opened: {type(error).__name__}: {error}") from error


def _open(device: str, precision: str, processes: int, strategy: Strategy) -> Device:
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if device == "cuda" and on_cpu:
        raise RuntimeError("a CUDA device was asked for and torch sees none")
    resolved = resolve_precision(precision, "cpu" if on_cpu else "cuda")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = resolved == "tf32"
    torch.set_num_threads(thread_count())
    AcceleratorState._reset_state()  # it is a process-wide singleton that keeps the first precision
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        raise RuntimeError(f"the run asks for processes: {processes}, its worker was started as {started}")
    accelerator = accelerator_of(on_cpu, resolved == "bf16", processes, strategy)
    kind = expected_type(on_cpu, processes, strategy).value
    # DeepSpeed does its own mixed precision (see `_deepspeed_config`).
    mixed = "bf16" if resolved == "bf16" and kind != "DEEPSPEED" else "no"
    want = (processes, kind, "cpu" if on_cpu else "cuda", mixed)
    got = (accelerator.num_processes, accelerator.distributed_type.value)
    got = (*got, accelerator.device.type, accelerator.mixed_precision)
    if got != want:
        raise RuntimeError(f"Accelerate gave (processes, type, device, precision) {got}, asked for {want}")
    return Device(accelerator, resolved, strategy)
