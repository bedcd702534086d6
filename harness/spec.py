"""What a run is: the frozen specs of the three kinds of work, and the id that is a hash of their content.

In an id is everything that decides the number and nothing that does not (where, when, on how many workers). Precision
stays as written (`auto` stays `auto`), so that a login node without a GPU plans the same ids as the node that runs
them. No torch is imported here.
"""

import functools
import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import dskd.methods
from dskd.backbones import BACKBONES
from dskd.config import ConfigError, difference, require, to_mapping
from dskd.size import Size, sides, simplest
from dskd.switches import Map, Method, Score

METRIC_REVISION = 1  # raised by hand when a fix in `harness.run` changes metrics or maps; part of the ids
BENCH_REVISION = 2  # of the throughput protocol (docs/protocol.md)
STEP = 2  # of a training's steps on a GPU: `step` in its record, which those by earlier steps lack; in no id
MOST_SIDE = 16_384  # pixels: a batch of one such square is 3 GiB
MOST_IMAGES = 65_536  # of a batch
MOST_FOLDS = 20

Precision = Literal["auto", "fp32", "tf32", "bf16"]
Metrics = Literal["exact", "histogram"]
Kind = Literal["train", "evaluate", "bench"]
# Those of Accelerate; each is the name of its package too.
Tracking = Literal["tensorboard", "mlflow", "wandb", "aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio"]
Compile = Literal["auto", True, False, "graph"]
Called = tuple[tuple[str, str], ...]
Strategy = Literal["ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]


def digest(content: Any) -> str:
    """16 hexadecimal digits of the sha256 of the content as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Setting:
    """What a field of a spec is elsewhere: the keys of grids, what counts in an id and the columns of tables follow.

    Attributes:
        key: in a grid, and of its column.
        later: it was added when there were records already. It counts in an id only where it differs from its default,
            and a record that lacks it has the default.
        column: whether tables have one of it.
        protocol: its place, from 1, among what decides whether two numbers may stand in one table; 0 for a setting of
            a model, which makes a row of its own.
    """

    key: str
    later: bool = False
    column: bool = True
    protocol: int = 0


def setting(key: str, **what: Any) -> dict[str, Setting]:
    """The metadata of a field that a grid can set; arguments as those of `Setting`."""
    return {"setting": Setting(key, **what)}


@functools.cache
def settings(kind: type) -> dict[str, Setting]:
    """The settings of a kind of spec by their field, in the order in which messages list them: the protocol first, and
    those of each half that were added later at its end.
    """
    found = {each.name: each.metadata["setting"] for each in fields(kind) if "setting" in each.metadata}
    return dict(sorted(found.items(), key=lambda item: (not item[1].protocol, item[1].later, item[1].protocol)))


@functools.cache
def later(kind: type) -> dict[str, Any]:
    """The defaults of a kind's later settings, by field."""
    return {name: getattr(kind, name) for name, each in settings(kind).items() if each.later}


def _changed(spec: Any) -> dict[str, Any]:
    """The later settings that differ from their default, as plain data."""
    defaults = later(type(spec)).items()
    return {name: to_mapping(value) for name, default in defaults if (value := getattr(spec, name)) != default}


@functools.lru_cache(maxsize=4096)
def _method_digest(method: Method, *without: str) -> str:
    """Of the fields that differ from their default, so that a switch that is added later makes no run another one.

    The price: a default that changes must raise `dskd.methods.REVISION`; a test with golden ids says so.
    """
    content = difference(method)
    return digest({key: value for key, value in content.items() if key not in without})


_map_difference = functools.lru_cache(maxsize=4096)(difference)  # most runs of a grid share one


@dataclass(frozen=True)
class Weights:
    """The teacher's weights: `name` is what the grid says (`imagenet`, `random` or a file's name), the sha256
    decides.
    """

    name: str = "random"
    sha256: str | None = None


@dataclass(frozen=True)
class Data:
    """One category of one data set, as the hashes of its files' names, contents, labels and splits fix it.

    Attributes:
        manifest: of the images to train on and of held-out normals: a training is of these.
        test_manifest: of the test images with their masks: an evaluation is of these too. Empty in records from before
            the two halves had a hash each; there `manifest` is of both.
    """

    name: str
    category: str
    manifest: str
    options: tuple[tuple[str, str], ...] = ()
    train_images: int = 0
    test_images: int = 0
    test_manifest: str = ""


@dataclass(frozen=True)
class Folds:
    """`calibrate: {folds: K}`: so many further trainings, each without another fold of the normal images."""

    folds: int

    def __post_init__(self) -> None:
        require(2 <= self.folds <= MOST_FOLDS, f"folds: {self.folds} is not possible; write 2 to {MOST_FOLDS}")


Calibrate = Annotated[float, "a number"] | Annotated[Folds, f"{{folds: K}} with K from 2 to {MOST_FOLDS}"]


@dataclass(frozen=True)
class TrainSpec:
    """One training: method and recipe × backbone × category × seed. Its id is the id of the trained students.

    Attributes:
        image_size: pixels to which an image is resized, the side of a square or (height, width); (S, S) becomes S.
        precision: `auto` stays `auto` here, and the record says what it became; so it is with `compile`.
        crop: side in pixels of the square that is cut from the middle of the resized image, 0 for all of it.
        evaluate_at: epochs after which the metrics are recorded too; they select nothing. A grid may say `log`.
        processes: so many share each batch, by `strategy`; they decide the numbers too, since each has BatchNorm
            statistics of its own part.
        compile: the training step, with torch.compile; or `graph`: recorded as a CUDA graph of its own kernels.
        calibrate: the share of the normal images that is held out before anything else is done, whole groups together,
            for thresholds (docs/protocol.md); 0 for none, or `Folds` to hold none out.
        called: by `method`, `backbone` and `dataset` what the `label` of its entry calls it; shown, and in no id.

    Raises:
        ConfigError: values that are not possible, also together; what depends on the facts of a backbone is checked
            where these are in the table of `dskd.backbones`, as they are after `harness.backbones.remember`.
    """

    method: Method
    backbone: str
    weights: Weights = field(metadata=setting("weights", protocol=3))
    data: Data
    seed: int = field(default=0, metadata=setting("seed", column=False))  # a label
    image_size: Size = field(default=256, metadata=setting("image_size", protocol=1))
    precision: Precision = field(default="auto", metadata=setting("precision", protocol=4))
    eval_batch_size: int = field(default=32, metadata=setting("eval.batch_size"))
    crop: int = field(default=0, metadata=setting("crop", later=True, protocol=2))
    # Metrics along a training cannot be had afterwards, so a training that has them is another piece of work.
    evaluate_at: tuple[int, ...] = field(default=(), metadata=setting("evaluate.at", later=True, column=False))
    processes: int = field(default=1, metadata=setting("processes", later=True))
    strategy: Strategy = field(default="ddp", metadata=setting("strategy", later=True))
    compile: Compile = field(default="auto", metadata=setting("compile", later=True))
    calibrate: Calibrate = field(default=0.0, metadata=setting("calibrate", later=True))
    called: Called = ()

    kind: ClassVar[Kind] = "train"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", simplest(self.image_size))
        written = to_mapping(self.image_size)
        require(
            min(sides(self.image_size)) >= 1 and max(sides(self.image_size)) <= MOST_SIDE,
            f"image_size: {written} is not possible; write 1 or more, up to {MOST_SIDE}",
        )
        for name, value, least, most in (
            ("crop", self.crop, 0, MOST_SIDE),
            ("eval.batch_size", self.eval_batch_size, 1, MOST_IMAGES),
            ("processes", self.processes, 1, MOST_IMAGES),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name}: {value} is not possible; write {least} or more, up to {most}")
        require(
            0 <= self.held_out_share < 1,
            f"calibrate: {self.held_out_share:g} is not possible; write the share of normal images to hold out for a "
            "threshold, such as 0.2, or 0 for none",
        )
        teacher = BACKBONES.get(self.backbone)
        seen = simplest(self.sides)
        if teacher and seen != (near := teacher.nearest_size(seen)):
            raise ConfigError(
                f"{'crop' if self.crop else 'image_size'}: {to_mapping(seen)} is not possible, {self.backbone} with a "
                f"decoder needs a multiple of {teacher.multiple}; write {to_mapping(near)}"
            )
        require(self.crop <= min(sides(self.image_size)), f"crop: {self.crop} is more than image_size: {written}")
        require(
            all(1 <= epoch <= self.method.train.epochs for epoch in self.evaluate_at)
            and list(self.evaluate_at) == sorted(set(self.evaluate_at)),
            f"evaluate.at: {list(self.evaluate_at)} is not possible; write rising epochs from 1 to "
            f"{self.method.train.epochs}",
        )
        student = BACKBONES.get(self.method.encoder.backbone or self.backbone)
        if teacher and student:
            dskd.methods.check_students(self.method, teacher, student)
        self._check_processes()

    def _check_processes(self) -> None:
        recipe, processes, strategy = self.method.train, self.processes, self.strategy
        require(
            self.compile in ("auto", False) or processes == 1,
            f"compile: {str(self.compile).lower()} is for a run of one process and this has processes: {processes}; "
            "write compile: false",
        )
        require(
            not self.folds or processes == 1,
            f"calibrate: {{folds: {self.folds}}} is for one process, not processes: {processes}; write calibrate: 0.2",
        )
        require(
            recipe.batch_size % processes == 0,
            f"train.batch_size: {recipe.batch_size} is of all processes together and does not divide by processes: "
            f"{processes}; write {math.ceil(recipe.batch_size / processes) * processes}",
        )
        require(
            recipe.batch_norm == "local" or processes > 1,
            "train.batch_norm: sync has nobody to share with; write local, or processes: 2 or more",
        )
        if strategy == "ddp":
            return
        require(
            processes > 1,
            f"strategy: {strategy} is for several processes and this is one; write processes: 2 or strategy: ddp",
        )
        require(
            recipe.optimizer != "split",
            f"train.optimizer: split is two optimizers, strategy: {strategy} takes one; write adam or sgd, or "
            "strategy: ddp",
        )
        require(
            recipe.ema == 0 or strategy != "deepspeed_zero3",
            "train.ema: no process of strategy: deepspeed_zero3 has the whole students to average; write "
            "strategy: deepspeed_zero2",
        )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images that the networks see, and of the maps."""
        return sides(self.crop or self.image_size)

    @property
    def folds(self) -> int:
        """So many further trainings there are for thresholds."""
        return self.calibrate.folds if isinstance(self.calibrate, Folds) else 0

    @property
    def held_out_share(self) -> float:
        """Of the normal images, those for thresholds alone."""
        return 0.0 if isinstance(self.calibrate, Folds) else self.calibrate

    @property
    def train_images(self) -> int:
        """About how many normal images are left of those of the data when those for thresholds are held out."""
        return round(self.data.train_images * (1 - self.held_out_share))

    @property
    def process_batch_size(self) -> int:
        """Of each process; `train.batch_size` is global."""
        return self.method.train.batch_size // self.processes

    @functools.cached_property
    def id(self) -> str:
        changed = _changed(self)
        data = [self.data.name, self.data.category, self.data.manifest]
        if self.evaluate_at and self.data.test_manifest:
            data.append(self.data.test_manifest)  # its metrics along the way are of those images
        return digest(
            [
                self.kind,
                dskd.methods.REVISION,
                _method_digest(self.method, "map", "score"),  # those are the evaluation's
                self.backbone,
                self.weights.sha256 or self.weights.name,
                data,
                [self.seed, self.image_size, self.precision, self.eval_batch_size],
                *([changed] if changed else []),
            ]
        )


@dataclass(frozen=True)
class EvaluateSpec:
    """One way to make maps, scores and metrics from one training's students.

    Attributes:
        aupro_limits: false positive rates, each up to which one AUPRO is integrated.
        metrics: `exact`, or `histogram` for test sets whose maps do not fit in memory, with bounds of its error.
        false_alarm_rate: what the threshold is for, where the training's `calibrate` holds normal images out.
        label: what its entry of `evaluate` is called; shown, and in no id.
    """

    train: TrainSpec
    map: Map
    score: Score = field(default="max", metadata=setting("score"))
    aupro_limits: tuple[float, ...] = field(default=(0.3, 0.05), metadata=setting("aupro_limits"))
    metrics: Metrics = field(default="exact", metadata=setting("metrics", later=True))
    false_alarm_rate: float = field(default=0.05, metadata=setting("false_alarm_rate", later=True))
    label: str = ""

    kind: ClassVar[Kind] = "evaluate"

    def __post_init__(self) -> None:
        self.train.method.check_map(self.map)
        require(
            bool(self.aupro_limits) and all(0 < limit <= 1 for limit in self.aupro_limits),
            f"aupro_limits: {list(self.aupro_limits)} is not possible; write false positive rates in (0, 1]",
        )
        require(
            0 < self.false_alarm_rate < 1,
            f"false_alarm_rate: {self.false_alarm_rate:g} is not possible; write a share between 0 and 1, such as 0.05",
        )

    @functools.cached_property
    def id(self) -> str:
        changed = _changed(self)
        metrics = [changed.pop("metrics")] if "metrics" in changed else []  # the first one, without its name
        shown = [self.score, list(self.aupro_limits), *metrics, *([changed] if changed else [])]
        test = self.train.data.test_manifest
        shown += [["test", test]] if test else []
        return digest([self.kind, METRIC_REVISION, self.train.id, _map_difference(self.map), *shown])


@dataclass(frozen=True)
class BenchSpec:
    """Inference throughput of one model on one device: it depends on no seed, no category and no weights."""

    method: Method
    backbone: str
    image_size: Size
    precision: Precision
    device: str
    threads: int
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    seconds: float = 10.0
    compile: bool = False
    called: Called = ()  # as of `TrainSpec`

    kind: ClassVar[Kind] = "bench"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", simplest(self.image_size))
        sizes = list(self.batch_sizes)
        require(
            bool(sizes) and min(sizes) >= 1 and max(sizes) <= MOST_IMAGES,
            f"bench.batch_sizes: {sizes} is not possible; write sizes of 1 or more, up to {MOST_IMAGES}",
        )
        require(0 < self.seconds <= 3600, f"bench.seconds: {self.seconds} is not possible; write 0.1 to 3600")

    @functools.cached_property
    def id(self) -> str:
        model = [_method_digest(self.method, "train", "loss"), self.backbone, self.image_size, self.precision]
        measure = [self.device, self.threads, list(self.batch_sizes), self.seconds, self.compile]
        return digest([self.kind, BENCH_REVISION, dskd.methods.REVISION, model, measure])


Spec = TrainSpec | EvaluateSpec | BenchSpec


@dataclass(frozen=True)
class Save:
    """What a run leaves beside its record: scores per image (CSV), pictures of so many maps, the students' weights."""

    scores: bool = True
    maps: int = 0
    weights: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.maps < 2**63, f"save.maps: {self.maps} is not possible; write 0 or a number of pictures")


@dataclass(frozen=True)
class Bench:
    """The grid's `bench:` section. `seconds`: of each measurement; `compile`: `[false, true]` for both models."""

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    seconds: float = 10.0
    compile: tuple[bool, ...] = (False,)
