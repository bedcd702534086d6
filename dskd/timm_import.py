"""The one place that imports timm: `from dskd.timm_import import timm`."""

import torch

# torchvision's published Linux wheel is a CUDA build. Under a CPU-only torch its C++ operators do not load and its
# import (and so timm's) fails with "operator torchvision::nms does not exist", because it registers fake kernels for
# operators that nobody defined. Declaring the two schemas is enough for everything used here; nms itself stays
# unusable.
if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        torch.library.define(f"torchvision::{schema.partition('(')[0]}", schema[schema.index("(") :])

import timm
from timm.models import efficientnet, mobilenetv3, resnet

__all__ = ["efficientnet", "mobilenetv3", "resnet", "timm"]
