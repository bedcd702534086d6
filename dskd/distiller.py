"""Distiller: a teacher and its students wired by a method's config."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dskd.anomaly_map import anomaly_map
from dskd.discrepancy import FACTORS, per_image, per_position
from dskd.embedding import DeepFeatureEmbedding
from dskd.methods import Map, Method
from dskd.students import DecoderStudent, EncoderStudent
from dskd.teacher import Teacher

Pyramids = dict[str, list[Tensor]]


class Students(nn.Module):
    """All that is trained, as one module (so that one optimizer, one DDP wrapper or one DeepSpeed engine holds it)."""

    def __init__(self, method: Method, backbone: str) -> None:
        super().__init__()
        self.method = method
        self.encoder = EncoderStudent(backbone) if method.has_encoder else None
        self.embedding = DeepFeatureEmbedding(backbone) if method.has_decoder else None
        self.decoder = DecoderStudent(backbone) if method.has_decoder else None

    def forward(self, images: Tensor, teacher: Sequence[Tensor]) -> Pyramids:
        """The pyramids of the students that count, by name; `teacher` is read only where the embedding's source is
        it.
        """
        pyramids = {"encoder": self.encoder(images)} if self.encoder is not None else {}
        if self.decoder is not None:
            source = list(teacher) if self.method.embedding.source == "teacher" else pyramids["encoder"]
            if self.method.embedding.detach:
                source = [scale.detach() for scale in source]
            pyramids["decoder"] = self.decoder(self.embedding(source))
        return {name: pyramids[name] for name in self.method.students}


class Distiller(nn.Module):
    """One student-teacher model: every method of this package, DSKD and its baselines alike, is a config of it.

    Args:
        method: which students there are, what they learn and how a map is made.
        backbone: a name of `dskd.backbones.BACKBONES`; teacher and encoder student are this trunk.
        weights: the teacher's, see `Teacher`; or an existing `Teacher` of this backbone, to share it between models.
    """

    def __init__(self, method: Method, backbone: str, weights: str | Path | Teacher = "random") -> None:
        super().__init__()
        self.method = method
        self.teacher = weights if isinstance(weights, Teacher) else Teacher(backbone, weights)
        self.students = Students(method, backbone)

    def features(self, images: Tensor, teacher: Sequence[Tensor] | None = None) -> tuple[Sequence[Tensor], Pyramids]:
        """The teacher's pyramid and the students', for normalised images (B, 3, H, W) with H, W multiples of 32.

        `teacher`: the pyramid if it is known already (a frozen teacher gives the same one every epoch).

        Raises:
            ValueError: a size that is no multiple of 32, at which the decoder's maps cannot match the teacher's.
        """
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise ValueError(f"images of {images.shape[-2]}x{images.shape[-1]}: both sides must be multiples of 32")
        teacher = self.teacher(images) if teacher is None else teacher
        return teacher, self.students(images, teacher)

    def loss(self, images: Tensor, teacher: Sequence[Tensor] | None = None) -> Tensor:
        """L = sum over students and scales of weight * mean discrepancy: a float32 scalar."""
        config = self.method.loss
        teacher, students = self.features(images, teacher)
        total = torch.zeros((), device=images.device)
        for name, pyramid in students.items():
            student_weight = config.encoder_weight if name == "encoder" else config.decoder_weight
            for layer in self.method.layers:
                pair = teacher[layer - 1], pyramid[layer - 1]
                mean = per_image(*pair).mean() if config.kind == "flat_cos" else per_position(*pair).mean()
                total = total + student_weight * config.scale_weights[layer - 1] * FACTORS[config.kind] * mean
        return total

    def discrepancies(self, images: Tensor, teacher: Sequence[Tensor] | None = None) -> Pyramids:
        """Per student the half squared distances (B, h_k, w_k) of the scales in `layers`, finest first."""
        teacher, students = self.features(images, teacher)
        return {
            name: [per_position(teacher[layer - 1], pyramid[layer - 1]) for layer in sorted(self.method.layers)]
            for name, pyramid in students.items()
        }

    def anomaly_map(self, images: Tensor, config: Map | None = None) -> Tensor:
        """Anomaly maps (B, H, W), float32, by the method's own map config or another one."""
        return anomaly_map(self.discrepancies(images), config or self.method.map, tuple(images.shape[-2:]))
