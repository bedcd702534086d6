"""The switches of a method: frozen dataclasses whose fields are the keys of a grid. No torch is imported here.

What DSKD's abstract leaves open is a switch here, with the default that we chose (docs/methods.md has them all).
A switch that cannot mean anything beside another is refused when the method is made, so before any work starts.
"""

from dataclasses import dataclass, field
from typing import Literal

from dskd.config import require

Student = Literal["encoder", "decoder"]
Score = Literal["max", "topk_mean", "mean", "std"]
Recipe = Literal["own", "common", "tuned_on_surfaces", "tuned_on_mtd"]
Scales = tuple[float, float, float]
EQUAL: Scales = (1.0, 1.0, 1.0)
PER_SCALE_FUSIONS = ("mean_feature", "noisy_or", "error_disagreement")  # students are fused before scales


@dataclass(frozen=True)
class Encoder:
    """The encoder student.

    Attributes:
        backbone: another trunk than the teacher's, matched to its maps by a 1x1 convolution per scale; none for the
            teacher's own.
        count: so many encoder students that differ in their initial weights alone.
        init: `imagenet` starts from the teacher's weights (refused where these have no BatchNorm statistics).
    """

    backbone: str | None = None
    count: int = 1
    init: Literal["random", "imagenet"] = "random"

    def __post_init__(self) -> None:
        require(1 <= self.count <= 16, f"count: {self.count} is not possible; write 1 to 16")
        require(
            self.backbone is None or self.init == "random",
            f"init: imagenet is the teacher's weights and the student's trunk is {self.backbone}; write init: random",
        )


@dataclass(frozen=True)
class Embedding:
    """The deep feature embedding in front of the decoder student.

    Attributes:
        source: whose pyramid it reads: the encoder student's (DSKD: the interaction of the two students), the teacher's
            (reverse distillation) or both, concatenated.
        kind: `mff_oce` is reverse distillation's bottleneck, `mff_1x1` its multi-scale fusion with a 1x1 convolution
            and pooling instead of a ResNet stage, `oce_only` that stage on the coarsest map alone. `layer4` is no
            embedding: the encoder student's own fourth stage.
        width: 64 makes the stage of a wide ResNet as narrow as the others'.
        blocks: of the stage, none for the backbone's layer4.
        detach: stop the decoder student's gradient here.
    """

    source: Literal["encoder", "teacher", "both"] = "encoder"
    kind: Literal["mff_oce", "mff_1x1", "oce_only", "layer4"] = "mff_oce"
    width: Literal["backbone", 64] = "backbone"
    blocks: int | None = None
    detach: bool = False

    def __post_init__(self) -> None:
        require(self.blocks is None or 1 <= self.blocks <= 32, f"blocks: {self.blocks} is not possible; write 1 to 32")
        require(
            self.kind != "layer4" or self.source == "encoder",
            f"kind: layer4 is a stage of the encoder student; it cannot stand with source: {self.source}",
        )
        require(
            self.kind in ("mff_oce", "oce_only") or (self.width == "backbone" and self.blocks is None),
            f"kind: {self.kind} has no stage that `width` and `blocks` could shape; leave them out",
        )


@dataclass(frozen=True)
class Decoder:
    """The decoder student.

    Attributes:
        up: how a block doubles the size, by a 2x2/2 transposed convolution or by bilinear upsampling and a convolution.
        block_order: counts of blocks from coarse to fine as RD4AD's code has them (in the encoder's order) or mirrored;
            they differ for ResNet-34, 50 and deeper.
        mirror: the encoder's own stages beyond its first scale run backwards, block by block and convolution by
            convolution, each down-sampling now an up-sampling (a transposed convolution of the same kernel, or `up:
            bilinear` and a convolution of it); for ResNets and EfficientNet-Lite.
        size: `own` is what the structure gives, `encoder` scales the inner widths of its blocks until the decoder has
            the encoder student's parameters, within 1 %.
    """

    up: Literal["deconv", "bilinear"] = "deconv"
    block_order: Literal["rd4ad", "mirrored"] = "rd4ad"
    mirror: bool = False
    size: Literal["own", "encoder"] = "own"

    def __post_init__(self) -> None:
        require(
            not self.mirror or self.block_order == "rd4ad",
            f"block_order: {self.block_order} is RD4AD's structure's and this is mirror: true; leave one of them out",
        )


@dataclass(frozen=True)
class Loss:
    """Which discrepancy is averaged, and the weights of students and scales.

    Attributes:
        kind: `pixel_cos` is 1 - cos over channels at each position, `l2norm` twice that (STFPM), `flat_cos` 1 - cos of
            the flattened maps (RD4AD's code), `mse` the mean squared difference of the raw features, `cos_mse` the sum
            `pixel_cos` + `mse_weight` * `mse` (MKD's, with the cosine per position).
        mse_weight: of `mse` in `cos_mse`.
        encoder_weight: of the encoder student's loss.
        decoder_weight: of the decoder student's loss.
        scale_weights: of scales 1 to 3, finest first.
    """

    kind: Literal["pixel_cos", "l2norm", "flat_cos", "mse", "cos_mse"] = "pixel_cos"
    mse_weight: float = 0.5
    encoder_weight: float = 1.0
    decoder_weight: float = 1.0
    scale_weights: Scales = EQUAL

    def __post_init__(self) -> None:
        require(
            self.kind == "cos_mse" or self.mse_weight == Loss.mse_weight,
            f"mse_weight: {self.mse_weight:g} counts only with kind: cos_mse; this is kind: {self.kind}",
        )
        for name, weight in {"mse_weight": self.mse_weight, **_weights(self)}.items():
            require(weight >= 0, f"{name}: {weight:g} is not possible; write 0 or more")


@dataclass(frozen=True)
class Map:
    """How the discrepancies of students and scales become one anomaly map; changing it needs no training.

    Attributes:
        discrepancy: at each position: `pixel_cos` is 1 - cos over channels, `l2norm` twice that (STFPM).
        scale_fuse: whether the maps of the scales are added or multiplied.
        student_fuse: `sum`, `mul` and `max` fuse each student's scales first, the others the students at each scale:
            `mean_feature` compares the teacher with the mean of the students' unit features, `noisy_or` is
            1 - (1 - D_e)(1 - D_d), `error_disagreement` adds that mean's error and the students' disagreement, each
            standardised by the training images (Uninformed Students).
        encoder_weight: of the encoder student's map, with `sum` and `max`.
        decoder_weight: of the decoder student's map, with `sum` and `max`.
        scale_weights: of scales 1 to 3, finest first.
        fuse_at: `image` upsamples every scale to the input's size before fusing; `scale1` fuses at the finest scale's
            size and upsamples the result (official STFPM).
        align_corners: whether upsampling takes corners for the outermost pixels' centres.
        sigma: Gaussian smoothing in pixels of the input, 0 for none.
        sigma_share: the same as a share of the input's shorter side, so that one recipe fits all sizes (our choice;
            DSKD's 4 pixels at 256 are 1/64); 0 for `sigma`, which does not count beside it.
    """

    discrepancy: Literal["pixel_cos", "l2norm"] = "pixel_cos"
    scale_fuse: Literal["sum", "mul"] = "sum"
    student_fuse: Literal["sum", "mul", "max", "mean_feature", "noisy_or", "error_disagreement"] = "sum"
    encoder_weight: float = 1.0
    decoder_weight: float = 1.0
    scale_weights: Scales = EQUAL
    fuse_at: Literal["image", "scale1"] = "image"
    align_corners: bool = False
    sigma: float = 4.0
    sigma_share: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.sigma <= 64, f"sigma: {self.sigma} is not possible; write 0 (no smoothing) to 64 pixels")
        require(
            0 <= self.sigma_share <= 0.25,
            f"sigma_share: {self.sigma_share:g} is not possible; write 0 (by sigma) to 0.25 of the shorter side",
        )
        require(
            not self.sigma_share or self.sigma in (0, Map.sigma),
            f"sigma: {self.sigma:g} does not count beside sigma_share: {self.sigma_share:g}; write sigma: 0",
        )
        for name, weight in _weights(self).items():
            require(weight >= 0, f"{name}: {weight:g} is not possible; write 0 or more")
        require(
            self.scale_fuse == "sum" or self.scale_weights == EQUAL,
            "scale_weights: a product's factors cannot be weighted; write scale_fuse: sum",
        )
        require(
            self.student_fuse in ("sum", "max") or (self.encoder_weight, self.decoder_weight) == (1, 1),
            f"encoder_weight, decoder_weight: they do not count with student_fuse: {self.student_fuse}; "
            "write student_fuse: sum or max",
        )
        require(
            self.student_fuse != "error_disagreement" or self.scale_fuse == "sum",
            "scale_fuse: standardised maps are negative too and have no product; write scale_fuse: sum",
        )

    def sigma_of(self, size: tuple[int, int]) -> float:
        """Of the smoothing, in pixels, for an input of (H, W) pixels."""
        return self.sigma_share * min(size) or self.sigma


@dataclass(frozen=True)
class Train:
    """The training recipe.

    Attributes:
        optimizer: `split` is Adam for embedding and decoder and SGD for the encoder student.
        lr: learning rate, with `split` of its Adam.
        encoder_lr: of the SGD of `split`.
        betas: of Adam.
        momentum: of SGD.
        weight_decay: with `split` the SGD's.
        epochs: passes over the training images.
        batch_size: global, of all processes together.
        schedule: of the learning rate, stepped every batch over all epochs.
        clip: the largest norm of the gradient, 0 for any.
        ema: decay per step of an exponential moving average of the students, which is then what is kept and measured;
            0 for none.
        select: which epoch is kept: the last, or the one with the lowest mean map on normal images that are held out.
        holdout: the share of normal images kept from training for `val_normal`; with `last` nothing is held out.
        batch_norm: where several processes train one run, statistics of each one's part of the batch or (`sync`, on
            CUDA) of the whole.
        renew_batch_norm: the running statistics of the students' BatchNorm are computed anew for the weights that are
            kept and measured (the averaged ones with `ema`): the mean over one pass through the training images.
    """

    optimizer: Literal["adam", "sgd", "split"] = "adam"
    lr: float = 0.005
    encoder_lr: float = 0.4
    betas: tuple[float, float] = (0.5, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 200
    batch_size: int = 16
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    clip: float = 0.0
    ema: float = 0.0
    select: Literal["last", "val_normal"] = "last"
    holdout: float = 0.2
    batch_norm: Literal["local", "sync"] = "local"
    renew_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            require(1 <= value <= 1_000_000, f"{name}: {value} is not possible; write 1 or more, up to 1000000")
        require(self.lr > 0, f"lr: {self.lr} is not possible; write a number above 0")
        require(self.encoder_lr > 0, f"encoder_lr: {self.encoder_lr} is not possible; write a number above 0")
        require(
            self.optimizer == "split" or self.encoder_lr == Train.encoder_lr,
            f"encoder_lr: {self.encoder_lr:g} counts only with optimizer: split; this is optimizer: {self.optimizer}",
        )
        require(self.weight_decay >= 0, f"weight_decay: {self.weight_decay} is not possible; write 0 or more")
        require(0 <= self.momentum < 1, f"momentum: {self.momentum} is not possible; write 0 up to (not including) 1")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas: {self.betas} is not possible; write two in [0, 1)")
        require(self.clip >= 0, f"clip: {self.clip} is not possible; write 0 (none) or the largest norm")
        require(0 <= self.ema < 1, f"ema: {self.ema} is not possible; write 0 (none) up to (not including) 1")
        require(0 < self.holdout < 1, f"holdout: {self.holdout} is not possible; write a share between 0 and 1")


@dataclass(frozen=True)
class Method:
    """One student-teacher method: which students, what they learn, how they are trained and how a map is made.

    Attributes:
        students: whose discrepancy counts; an encoder student that only feeds the embedding is built all the same.
        layers: the scales (1 to 3, strides 4, 8 and 16) that count in loss and map.
        recipe: `own` is the one that the method was published with, `common` is DSKD's loss, map, score and training;
            `tuned` in a grid is the short one that a search chose on another data set than the run's (`dskd.tuned`),
            here with the name of that one.
        score: of an image, from its map: the highest value, the mean of the highest ones, the mean of all, or their
            standard deviation.
        revision: raised by the author of a plug-in whose fix changes numbers.
    """

    name: str
    students: tuple[Student, ...]
    layers: tuple[int, ...] = (1, 2, 3)
    recipe: Recipe = "own"
    encoder: Encoder = field(default_factory=Encoder)
    embedding: Embedding = field(default_factory=Embedding)
    decoder: Decoder = field(default_factory=Decoder)
    loss: Loss = field(default_factory=Loss)
    map: Map = field(default_factory=Map)
    score: Score = "max"
    train: Train = field(default_factory=Train)
    revision: int = 0

    def __post_init__(self) -> None:
        require(
            len(self.students) in (1, 2) and len(set(self.students)) == len(self.students),
            f"students: {list(self.students)} is not possible; write [encoder], [decoder] or [encoder, decoder]",
        )
        require(
            bool(self.layers) and set(self.layers) <= {1, 2, 3} and len(set(self.layers)) == len(self.layers),
            f"layers: {list(self.layers)} is not possible; write some of [1, 2, 3]",
        )
        for name, default in (("embedding", Embedding()), ("decoder", Decoder())):
            require(
                self.has_decoder or getattr(self, name) == default,
                f"{name}: there is no decoder student; add `decoder` to `students` or leave `{name}` out",
            )
        require(
            self.has_encoder or self.encoder == Encoder(),
            "encoder: there is no encoder student; add `encoder` to `students` or leave `encoder` out",
        )
        require(
            self.encoder.count == 1 or self.students == ("encoder",),
            f"encoder.count: {self.encoder.count} encoder students stand alone; write students: [encoder]",
        )
        for student in ("encoder", "decoder"):
            require(
                student in self.students or getattr(self.loss, f"{student}_weight") == 1,
                f"loss.{student}_weight: `{student}` is not among `students`, its loss does not count; leave it out",
            )
        require(
            self.train.optimizer != "split" or (self.has_encoder and self.has_decoder),
            "train.optimizer: split needs an encoder and a decoder student; write adam or sgd",
        )
        require(
            self.train.select == "last" or self.map.student_fuse != "error_disagreement",
            "train.select: val_normal compares mean maps of normal images, all 0 with error_disagreement; write last",
        )
        self.check_map(self.map)

    def check_map(self, map: Map) -> None:
        """Raises ConfigError for a map that this method's students cannot make."""
        require(
            map.student_fuse != "error_disagreement" or self.student_count > 1,
            f"map.student_fuse: one student of {self.name} has nobody to disagree with; write sum",
        )
        require(
            map.scale_weights == EQUAL or set(self.layers) == {1, 2, 3},
            "map.scale_weights: they weight scales 1 to 3; write layers: [1, 2, 3] and a weight of 0 for none",
        )

    @property
    def has_encoder(self) -> bool:
        return "encoder" in self.students or (self.has_decoder and self.embedding.source != "teacher")

    @property
    def has_decoder(self) -> bool:
        return "decoder" in self.students

    @property
    def student_count(self) -> int:
        """Of the students whose discrepancy counts."""
        return len(self.students) + self.encoder.count - 1


def _weights(config: Loss | Map) -> dict[str, float]:
    scales = {f"scale_weights[{k}]": weight for k, weight in enumerate(config.scale_weights)}
    return {"encoder_weight": config.encoder_weight, "decoder_weight": config.decoder_weight, **scales}
