"""Multiply-adds of anything that torch does, by its own counter."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def count(do: Callable[..., T], *inputs: Any) -> tuple[int, T]:
    """Multiply-adds of `do(*inputs)` (matrix products and convolutions only), and what it returns.

    Gradients, autocast, device and the mode of a module are as the caller set them.
    """
    with FlopCounterMode(display=False) as counter:
        output = do(*inputs)
    return counter.get_total_flops() // 2, output
