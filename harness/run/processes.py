"""One run on several processes: Accelerate's strategies, and what the processes of a run tell each other.

The processes ("ranks") of a run are started together by a launcher and do the same job in step: each reads the data and
makes the same model from the same seed, each trains on its part of every batch, and rank 0 alone writes.
"""

import copy
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from dskd.switches import Train
from dskd.timm_import import timm
from harness.spec import Strategy

PATIENCE = timedelta(hours=1)  # of a rank for the others: rank 0 may be at the metrics of a large test set


def accelerator_of(on_cpu: bool, bf16: bool, processes: int, strategy: Strategy) -> Accelerator:
    """An Accelerator for the strategy; on CPUs the ranks talk through gloo, on GPUs through nccl.

    The caller must check what it is: Accelerate falls back silently.
    """
    precision = "bf16" if bf16 else "no"
    if processes == 1:
        return Accelerator(cpu=on_cpu, mixed_precision=precision)
    handlers = [InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=PATIENCE)]
    if strategy == "ddp":
        # BatchNorm's statistics are brought together when they are needed (`Device.share`), not in every step.
        handlers.append(DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True))
        return Accelerator(cpu=on_cpu, mixed_precision=precision, kwargs_handlers=handlers)
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        import deepspeed.ops

        # An all-reduce through shared memory that is compiled at the first start, for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # With `cpu=True` Accelerate would drop DeepSpeed and train with DDP.
    plugin = DeepSpeedPlugin(hf_ds_config=_deepspeed_config(int(strategy[-1]), bf16))
    return Accelerator(mixed_precision="no", deepspeed_plugin=plugin, kwargs_handlers=handlers)


def _deepspeed_config(stage: int, bf16: bool) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        # Not `bf16`, which casts the model and which BatchNorm does not survive. Without safe modules gradients travel
        # as float32, as with DDP.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "gradient_clipping": 0.0,  # never left out: DeepSpeed would clip at 1; `fit_to_recipe` writes the recipe's
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
    }


def expected_type(on_cpu: bool, processes: int, strategy: Strategy) -> DistributedType:
    if processes == 1:
        return DistributedType.NO
    if strategy != "ddp":
        return DistributedType.DEEPSPEED
    return DistributedType.MULTI_CPU if on_cpu else DistributedType.MULTI_GPU


def fit_to_recipe(accelerator: Accelerator, recipe: Train, batch_size: int) -> None:
    """What DeepSpeed must know of a recipe before its engine is made; `batch_size`: of each process."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"gradient_clipping": recipe.clip, "train_micro_batch_size_per_gpu": batch_size}


def share_batch_norm(students: torch.nn.Module) -> None:
    """Replace BatchNorm layers in place by ones with statistics over the batches of all ranks."""
    timm.layers.convert_sync_batchnorm(students)  # torch's own forgets the activation in some of timm's layers


def dense_copy(students: torch.nn.Module) -> torch.nn.Module:
    """For DeepSpeed, which takes modules apart for good (parameters become slices of its buffers), and through gloo
    takes none in channels_last.
    """
    return copy.deepcopy(students).to(memory_format=torch.contiguous_format)


def gather_parameters(engine_module: torch.nn.Module, into: torch.nn.Module) -> None:
    """Copy DeepSpeed's students into plain ones, on every rank; with ZeRO-3 each has a piece of every parameter."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(engine_module.parameters())), torch.no_grad():
        into.load_state_dict(engine_module.state_dict())
