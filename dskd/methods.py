"""The named methods: frozen configs of one `Distiller`, each with its own published recipe. No torch is imported here.

Every student-teacher method of this package is a frozen teacher pyramid, one or two student pyramids of the same
shapes, a discrepancy per scale, a loss that averages it and a map that fuses it. A method is therefore a value of
`Method`, and an ablation is `dskd.config.replace(METHODS["dskd"], {"embedding.source": "teacher"})`.
"""

from dataclasses import dataclass, field
from typing import Literal

from dskd.config import ConfigError, require, suggest

REVISION = 1  # raised by hand when a fix in `dskd` changes numbers; part of every run's identity

Student = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Embedding:
    """The deep feature embedding in front of the decoder student.

    `source`: whose pyramid it reads: the encoder student's (DSKD: the interaction of the two students) or the teacher's
    (reverse distillation). `detach`: stop the decoder student's gradient there.
    """

    source: Literal["encoder", "teacher"] = "encoder"
    detach: bool = False


@dataclass(frozen=True)
class Loss:
    """Which discrepancy is averaged, and the weights of students and of scales 1 to 3 (finest first)."""

    kind: Literal["pixel_cos", "l2norm", "flat_cos"] = "pixel_cos"
    encoder_weight: float = 1.0
    decoder_weight: float = 1.0
    scale_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Map:
    """How the discrepancies of students and scales become one anomaly map; changing it needs no training.

    `fuse_at`: `image` upsamples every scale to the input's size before fusing; `scale1` fuses at the finest scale's
    size and upsamples the result (official STFPM). `sigma`: Gaussian smoothing in pixels of the input, 0 for none.
    """

    discrepancy: Literal["pixel_cos", "l2norm"] = "pixel_cos"
    scale_fuse: Literal["sum", "mul"] = "sum"
    student_fuse: Literal["sum", "mul", "max"] = "sum"
    fuse_at: Literal["image", "scale1"] = "image"
    align_corners: bool = False
    sigma: float = 4.0

    def __post_init__(self) -> None:
        require(0 <= self.sigma <= 64, f"sigma: {self.sigma} is not possible; write 0 (no smoothing) to 64 pixels")


@dataclass(frozen=True)
class Train:
    """The training recipe. `batch_size` is global. `holdout` is the share of normal images kept from training when
    `select` is `val_normal` (the epoch with the lowest mean map on them is kept); with `last` nothing is held out."""

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 200
    batch_size: int = 16
    select: Literal["last", "val_normal"] = "last"
    holdout: float = 0.2

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs: {self.epochs} is not possible; write 1 or more")
        require(self.batch_size >= 1, f"batch_size: {self.batch_size} is not possible; write 1 or more")
        require(self.lr > 0, f"lr: {self.lr} is not possible; write a number above 0")
        require(self.weight_decay >= 0, f"weight_decay: {self.weight_decay} is not possible; write 0 or more")
        require(0 <= self.momentum < 1, f"momentum: {self.momentum} is not possible; write 0 up to (not including) 1")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas: {self.betas} is not possible; write two in [0, 1)")
        require(0 < self.holdout < 1, f"holdout: {self.holdout} is not possible; write a share between 0 and 1")


@dataclass(frozen=True)
class Method:
    """One student-teacher method: which students, what they learn, how they are trained and how a map is made.

    `students` are those whose discrepancy counts; an encoder student that only feeds the embedding is built all the
    same. `layers` are the scales (1 to 3, strides 4, 8 and 16) that count in loss and map.
    """

    name: str
    students: tuple[Student, ...]
    layers: tuple[int, ...] = (1, 2, 3)
    embedding: Embedding = field(default_factory=Embedding)
    loss: Loss = field(default_factory=Loss)
    map: Map = field(default_factory=Map)
    score: Literal["max", "mean", "std"] = "max"
    train: Train = field(default_factory=Train)

    def __post_init__(self) -> None:
        require(
            len(self.students) in (1, 2) and len(set(self.students)) == len(self.students),
            f"students: {list(self.students)} is not possible; write [encoder], [decoder] or [encoder, decoder]",
        )
        require(
            bool(self.layers) and set(self.layers) <= {1, 2, 3} and len(set(self.layers)) == len(self.layers),
            f"layers: {list(self.layers)} is not possible; write some of [1, 2, 3]",
        )
        require(
            "decoder" in self.students or self.embedding == Embedding(),
            "embedding: there is no decoder student to feed; add `decoder` to `students` or leave `embedding` out",
        )

    @property
    def has_encoder(self) -> bool:
        return "encoder" in self.students or self.embedding.source == "encoder"

    @property
    def has_decoder(self) -> bool:
        return "decoder" in self.students


METHODS: dict[str, Method] = {
    # Yao & Gao 2024, arXiv 2402.00448: the outline is the abstract's (two students of one scale and inverted structure,
    # pyramid matching, interaction through a deep feature embedding). The recipe is not public: optimizer, epochs,
    # batch and smoothing are reverse distillation's, the per-position loss is shared by both baselines (our choice).
    "dskd": Method(name="dskd", students=("encoder", "decoder")),
    # Wang et al. 2021, BMVC, "Student-Teacher Feature Pyramid Matching"; the official code gdwang08/STFPM@2598a5e: loss
    # without the factor 1/2, mean over batch and positions, product of scales at 64x64, no smoothing, 20 % of the
    # normals held out and the epoch with the lowest mean map kept. (anomalib and hcw-00 step 16 times as far at batch
    # 32.)
    "stfpm": Method(
        name="stfpm",
        students=("encoder",),
        loss=Loss(kind="l2norm"),
        map=Map(discrepancy="l2norm", scale_fuse="mul", fuse_at="scale1", sigma=0.0),
        train=Train(optimizer="sgd", lr=0.4, weight_decay=1e-4, epochs=100, batch_size=32, select="val_normal"),
    ),
    # Deng & Li 2022, CVPR, "Anomaly Detection via Reverse Distillation from One-Class Embedding"; the official code
    # hq-deng/RD4AD@6554076: one cosine per image over the flattened map, sum of scales, aligned corners, sigma 4.
    "reverse_distillation": Method(
        name="reverse_distillation",
        students=("decoder",),
        embedding=Embedding(source="teacher"),
        loss=Loss(kind="flat_cos"),
        map=Map(align_corners=True),
    ),
}


def get_method(name: str) -> Method:
    """The named method's config. Raises ConfigError with the near match for a name that does not exist."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; {suggest(name, METHODS)}")
    return METHODS[name]
