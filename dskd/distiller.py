"""Distiller: a teacher and its students wired by a method's config."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dskd.anomaly_map import Calibration, anomaly_map
from dskd.backbones import lacks_statistics
from dskd.config import require
from dskd.discrepancy import loss, of_students, per_position
from dskd.embedding import DeepFeatureEmbedding
from dskd.lookup import get_backbone
from dskd.methods import STUDENTS
from dskd.students import DecoderStudent, EncoderStudent
from dskd.switches import Map, Method
from dskd.teacher import Teacher

Pyramids = dict[str, list[Tensor]]


class Students(nn.Module):
    """All that is trained, as one module (so that one optimizer, one DDP wrapper or one DeepSpeed engine holds it).

    A plug-in's subclass has `forward` give the pyramids of the students that count, by the names in `method.students`.
    """

    def __init__(self, method: Method, backbone: str) -> None:
        super().__init__()
        self.method = method
        config, deep = method.encoder, method.embedding.kind == "layer4"
        teacher, trunk = get_backbone(backbone), get_backbone(config.backbone) if config.backbone else None
        self.encoder = EncoderStudent(teacher, trunk, deep) if method.has_encoder else None
        has_embedding = method.has_decoder and not deep
        self.embedding = DeepFeatureEmbedding(teacher, method.embedding) if has_embedding else None
        channels = (trunk or teacher).deep_channels if deep else None
        size = sum(parameter.numel() for parameter in self.encoder.parameters()) if self.encoder is not None else None
        self.decoder = DecoderStudent(teacher, method.decoder, channels, size) if method.has_decoder else None
        self.more_encoders = nn.ModuleList(EncoderStudent(teacher, trunk) for _ in range(config.count - 1))

    def forward(self, images: Tensor, teacher: Sequence[Tensor]) -> Pyramids:
        """The pyramids of the students that count, by name (`encoder`, `decoder`, `encoder_2`, ...); `teacher` is read
        only where the embedding's source is it.
        """
        pyramids = {"encoder": self.encoder(images)} if self.encoder is not None else {}
        if self.decoder is not None:
            pyramids["decoder"] = self.decoder(self._embedded(pyramids.get("encoder", []), teacher))
        kept = {name: pyramids[name][:3] for name in self.method.students}
        return kept | {f"encoder_{i}": encoder(images) for i, encoder in enumerate(self.more_encoders, start=2)}

    def _embedded(self, encoder: list[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The decoder student's input."""
        config = self.method.embedding
        if config.detach:
            encoder = [scale.detach() for scale in encoder]
        if config.kind == "layer4":
            return encoder[3]
        if config.source == "encoder":
            return self.embedding(encoder)
        if config.source == "teacher":
            return self.embedding(list(teacher))
        return self.embedding([torch.cat(pair, dim=1) for pair in zip(encoder, teacher, strict=True)])


class Distiller(nn.Module):
    """One student-teacher model: every method of this package, DSKD and its baselines alike, is a config of it.

    Args:
        method: which students there are, what they learn and how a map is made.
        backbone: a name that `Teacher` takes; the encoder student is this trunk unless the method names another.
        weights: the teacher's, see `Teacher`; or an existing `Teacher` of this backbone, to share it between models.

    Raises:
        ConfigError: `encoder.init: imagenet` and a teacher without BatchNorm statistics.
    """

    def __init__(self, method: Method, backbone: str, weights: str | Path | Teacher = "random") -> None:
        super().__init__()
        self.method = method
        self.multiple = get_backbone(backbone).multiple
        self.teacher = weights if isinstance(weights, Teacher) else Teacher(backbone, weights)
        self.students: Students = STUDENTS.get(method.name, Students)(method, backbone)
        if method.encoder.init == "imagenet":
            self._start_from_teacher()

    def _start_from_teacher(self) -> None:
        state = self.teacher.trunk.state_dict()
        require(
            not lacks_statistics(state),
            "encoder.init: imagenet needs weights with their BatchNorm statistics; the teacher's have none (folded "
            "into the convolutions, or random) and no student can be trained from them; write encoder.init: random",
        )
        for encoder in (self.students.encoder, *self.students.more_encoders):
            # A `layer4` beyond the teacher's three scales stays random.
            encoder.trunk.load_state_dict(state, strict=False)

    def features(self, images: Tensor, teacher: Sequence[Tensor] | None = None) -> tuple[Sequence[Tensor], Pyramids]:
        """The teacher's pyramid and the students', for normalised images (B, 3, H, W) with H, W multiples of 32.

        `teacher`: the pyramid if it is known already (a frozen teacher gives the same one every epoch).

        Raises:
            ValueError: a size at which the decoder's maps cannot match the teacher's: no multiple of 32 (twice the
                coarsest stride, for other backbones than ResNets).
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"images of {height}x{width}: both sides must be multiples of {self.multiple}")
        teacher = self.teacher(images) if teacher is None else teacher
        return teacher, self.students(images, teacher)

    def loss(self, images: Tensor, teacher: Sequence[Tensor] | None = None) -> Tensor:
        """L = sum over students and scales of weight * mean discrepancy: a float32 scalar."""
        config = self.method.loss
        teacher, students = self.features(images, teacher)
        total = torch.zeros((), device=images.device)
        for name, pyramid in students.items():
            weight = config.encoder_weight if name.startswith("encoder") else config.decoder_weight
            for layer in self.method.layers:
                mean = loss(teacher[layer - 1], pyramid[layer - 1], config)
                total = total + weight * config.scale_weights[layer - 1] * mean
        return total

    def discrepancies(
        self, images: Tensor, teacher: Sequence[Tensor] | None = None, together: bool | None = None
    ) -> Pyramids:
        """Per student the half squared distances (B, h_k, w_k) of the scales in `layers`, finest first.

        `together`: also what fusions of the students' features need (`mean_feature`, `error`, `disagreement`); by
        default as the method's own map does.
        """
        teacher, students = self.features(images, teacher)
        layers = [layer - 1 for layer in sorted(self.method.layers)]
        found = {name: [per_position(teacher[k], pyramid[k]) for k in layers] for name, pyramid in students.items()}
        if needs_features(self.method.map) if together is None else together:
            scales = [of_students(teacher[k], [pyramid[k] for pyramid in students.values()]) for k in layers]
            found |= {name: [scale[name] for scale in scales] for name in scales[0]}
        return found

    def anomaly_map(self, images: Tensor, config: Map | None = None, calibration: Calibration | None = None) -> Tensor:
        """Anomaly maps (B, H, W), float32, by the method's own map config or another one (`dskd.anomaly_map`)."""
        config = config or self.method.map
        found = self.discrepancies(images, together=needs_features(config))
        return anomaly_map(found, config, tuple(images.shape[-2:]), calibration)


def needs_features(config: Map) -> bool:
    """Whether a map is made of more than each student's own discrepancies."""
    return config.student_fuse in ("mean_feature", "error_disagreement")
