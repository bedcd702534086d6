"""A trained model: pictures to maps, scores, p-values and decisions, with the numbers of its evaluation."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from dskd import conformal
from dskd.anomaly_map import anomaly_map, image_scores
from dskd.config import ConfigError, require
from dskd.distiller import Distiller, needs_features
from dskd.teacher import Teacher
from harness.data.catalog import DataError
from harness.data.fingerprints import any_size, read_file
from harness.data.images import decoded, in_rgb, middle, resized
from harness.environment import core_count
from harness.files import user_path
from harness.predict import pack, stored
from harness.predict.content import Content, Preparation
from harness.run.batches import to_images, whole_batches
from harness.run.device import autocast

log = logging.getLogger("harness.predict")
AHEAD = 2  # batches that are decoded while one is inspected
MOST_WAITING = 4096  # pictures that cannot be read wait for no more than so many others


@dataclass(frozen=True)
class Prediction:
    """What a model says of a picture.

    Attributes:
        path: as it was given.
        score: of the image; higher is more anomalous.
        p_value: how rarely a normal image scores so high, and anomalous: whether the score is above the threshold; None
            where the run held out no normal images for it.
        map: float32 (H, W) of the networks' size.
        pixels: uint8 (H, W, 3) as the networks saw it.
        size: width and height of the picture in pixels, as its EXIF data turn it.
    """

    path: str
    score: float
    p_value: float | None
    anomalous: bool | None
    map: np.ndarray
    pixels: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be read, and why, in one line."""

    path: str
    why: str


@dataclass(frozen=True)
class _Picture:
    """A picture that was read: `pixels` as of `Prediction`, and so `size`."""

    path: str
    pixels: np.ndarray
    size: tuple[int, int]


class Model:
    """A trained model, by `load`.

    Attributes:
        content: all that decides its numbers beside its weights.
        about: name, method, backbone, dataset, category, when it was trained, commit, versions, licences.
        notes: what there is to say, each once; the logger `harness.predict` says it too, as warnings.
    """

    def __init__(self, content: Content, distiller: Distiller, place: torch.device) -> None:
        self.content, self.place = content, place
        self.about: dict[str, Any] = dict(content.about)
        self.notes: list[str] = []
        self._distiller = distiller.to(place, memory_format=torch.channels_last).eval()
        self._precision = "fp32" if content.precision == "tf32" and place.type == "cpu" else content.precision
        self._other_size = False
        if content.lacking():
            self.note(content.lacking())

    @property
    def threshold(self) -> float | None:
        """An image with a higher score is anomalous, at the false alarm rate `rate`; None without one."""
        return self.content.threshold

    @property
    def pixel_threshold(self) -> float | None:
        """A position of a map with a higher value is defective, at the rate `rate`; None without one."""
        return self.content.pixel_threshold

    @property
    def rate(self) -> float | None:
        """The false alarm rate that the thresholds are for; `content` has those of other rates."""
        return self.content.rate

    @property
    def calibration(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and weights (`dskd.conformal.unit_weights`) of the normal images that thresholds are made from."""
        return self.content.scores_and_weights

    def note(self, line: str) -> None:
        """Say it, once."""
        if line not in self.notes:
            self.notes.append(line)
            log.warning("%s", line)

    @torch.inference_mode()
    def inspect(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps float32 (N, H, W) and scores float64 (N,) of images as the networks see them, uint8 (N, H, W, 3).

        They are computed in batches of exactly the size of the evaluation, the last filled up, so that they are its
        numbers.

        Raises:
            ValueError: images of another size or type.
        """
        spec, size = self.content.spec, self.content.preparation.sides
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (*size, 3):
            raise ValueError(f"images of {pixels.dtype} {pixels.shape}; uint8 (N, {size[0]}, {size[1]}, 3) is needed")
        maps, scores = np.empty((len(pixels), *size), np.float32), np.empty(len(pixels), np.float64)
        together = needs_features(spec.map)
        if self.place.type != self.content.device_type:
            self.note(
                f"it was evaluated on {self.content.device_type} and computes on {self.place.type} now: scores may "
                "differ from those that its threshold was made from in their last digits"
            )
        with _as_in_runs(self._precision):
            for positions, real in whole_batches(len(pixels), self.content.batch_size):
                batch = torch.from_numpy(pixels[positions]).to(self.place)
                with autocast(self.place.type, self._precision):
                    found = self._distiller.discrepancies(to_images(batch), together=together)
                made = anomaly_map(found, spec.map, size, self.content.standardisation)
                rows = positions[:real]
                scores[rows] = image_scores(made[:real], spec.score).double().cpu().numpy()
                maps[rows] = made[:real].cpu().numpy()
        return maps, scores

    def predict(self, paths: Iterable[str | Path], *, rate: float | None = None) -> Iterator[Prediction]:
        """Of each picture, in their order.

        Args:
            rate: the false alarm rate of the decisions; None for the evaluation's own.

        Raises:
            DataError: a picture that cannot be read.
            ConfigError: a rate that there is no threshold for, with what is attainable; before anything is read.
        """
        return self._whole(self.predictions(paths, rate=rate))

    def predictions(
        self, paths: Iterable[str | Path], *, rate: float | None = None
    ) -> Iterator[Prediction | Unreadable]:
        """As `predict`; a picture that cannot be read is `Unreadable` in its place. Pictures are decoded on threads
        while the networks are at others; however many paths there are, a few batches are held.
        """
        threshold = self.content.threshold if rate is None else self.content.threshold_at(rate)
        return self._predictions(paths, threshold)

    def pack(self, file: Path) -> None:
        """Write all of it to one file, from which `load` makes the same model wherever that is. Raises OSError."""
        networks = self._distiller
        pack.write(file, self.content, networks.teacher.trunk.state_dict(), networks.students.state_dict())

    @staticmethod
    def _whole(found: Iterator[Prediction | Unreadable]) -> Iterator[Prediction]:
        for each in found:
            if isinstance(each, Unreadable):
                raise DataError(each.why)
            yield each

    def _predictions(self, paths: Iterable[str | Path], threshold: float | None) -> Iterator[Prediction | Unreadable]:
        waiting: list[_Picture | Unreadable] = []
        readable = 0
        for each in _ahead(paths, self.content.preparation, AHEAD * self.content.batch_size):
            waiting.append(each)
            readable += isinstance(each, _Picture)
            if readable == self.content.batch_size or not readable or len(waiting) == MOST_WAITING:
                yield from self._judged(waiting, threshold)
                waiting, readable = [], 0
        yield from self._judged(waiting, threshold)

    def _judged(
        self, waiting: Sequence[_Picture | Unreadable], threshold: float | None
    ) -> Iterator[Prediction | Unreadable]:
        """At most a batch of pictures, with those between them that cannot be read."""
        pictures = [each for each in waiting if isinstance(each, _Picture)]
        for each in pictures:
            self._compare_size(each)
        maps, scores, values = (), np.empty(0), None
        if pictures:
            maps, scores = self.inspect(np.stack([each.pixels for each in pictures]))
            known = self.content.scores_and_weights
            values = conformal.p_values(scores, *known) if known else None
        place = 0
        for each in waiting:
            if isinstance(each, Unreadable):
                yield each
                continue
            score = float(scores[place])
            p_value = None if values is None else float(values[place])
            anomalous = None if threshold is None else score > threshold
            yield Prediction(each.path, score, p_value, anomalous, maps[place], each.pixels, each.size)
            place += 1

    def _compare_size(self, picture: _Picture) -> None:
        """Say of the first picture of another size or aspect than those of training what becomes of it."""
        if self._other_size or self.content.is_as_in_training(*picture.size):
            return
        self._other_size = True
        (low, high), (least, most) = (self.content.pictures[key] for key in ("width", "height"))
        height, width = self.content.preparation.sides
        self.note(
            f"{picture.path} has {picture.size[0]}x{picture.size[1]} pixels, pictures of training had {low} to {high} "
            f"by {least} to {most}: it and others like it are brought to {width}x{height} as those were, and what was "
            "learned of their scale may not hold"
        )


def load(run: str | Path, weights: str | Path | None = None, device: str = "auto") -> Model:
    """The model of a finished run, with its thresholds.

    Args:
        run: the folder of an evaluation, or of a training that has one evaluation; or the file of a pack.
        weights: the file of the teacher's weights, where it is not where the run's grid says.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: one line with what is wrong and what would be right: a run that is not done or whose weights were
            not kept, several evaluations, a teacher that is not on this machine, a device that is not there; a pack
            that is damaged or newer than this harness.
    """
    path, place = user_path(str(run)), _place(device)
    if path.is_dir():
        return _of_run(stored.read(path, weights), place)
    require(path.exists(), f"there is no {path}; name the folder of a run, or a pack")
    require(weights is None, f"weights: {path} is a pack and holds its teacher; leave them out")
    return _of_pack(path, place)


def _of_pack(path: Path, place: torch.device) -> Model:
    found = pack.read(path)
    stored.check_plugins(found.content)
    backbone = found.content.spec.train.backbone
    teacher = Teacher(backbone)
    try:
        teacher.trunk.load_state_dict(found.teacher)
    except RuntimeError:
        raise ConfigError(f"{path}: the tensors of its teacher are not those of {backbone} here") from None
    model = Model(found.content, _assembled(found.content, teacher, found.students, path), place)
    model.about |= {"pack": found.about}
    return model


def _of_run(found: stored.Stored, place: torch.device) -> Model:
    train = found.content.spec.train
    teacher = Teacher(train.backbone, found.teacher or "random")
    try:
        students = load_file(found.students)
    except Exception as error:  # safetensors raises its own and OS errors for damaged files
        raise ConfigError(f"{found.students} cannot be read ({error}); train again with --force") from None
    model = Model(found.content, _assembled(found.content, teacher, students, found.students), place)
    for line in found.notes:
        model.note(line)
    return model


def _assembled(content: Content, teacher: Teacher, students: dict[str, torch.Tensor], where: Path) -> Distiller:
    """The networks with the weights of the students. Raises ConfigError for tensors that are not theirs."""
    train = content.spec.train
    with torch.random.fork_rng(devices=[]):  # the user's random numbers stay as they are
        distiller = Distiller(train.method, train.backbone, teacher)
    own = distiller.students.state_dict()
    if {key: value.shape for key, value in students.items()} != {key: value.shape for key, value in own.items()}:
        raise ConfigError(f"{where}: its tensors are not those of {train.method.name} on {train.backbone}")
    distiller.students.load_state_dict(students)
    return distiller


def _place(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {device!r} is not possible; write auto, cpu, cuda or cuda:0")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: there is no {device} here; write device: cpu")
    return place


@contextmanager
def _as_in_runs(precision: str) -> Iterator[None]:
    """The switches of torch under which runs compute (`harness.run.device`), put back at the end."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, precision == "tf32"
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=precision == "tf32"
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def _ahead(paths: Iterable[str | Path], preparation: Preparation, most: int) -> Iterator[_Picture | Unreadable]:
    """The pictures in the order of their paths, up to `most` of them read on threads before they are asked for."""
    pool = ThreadPoolExecutor(core_count(), "decode")
    under_way: deque[Future[_Picture | Unreadable]] = deque()
    try:
        for path in paths:
            under_way.append(pool.submit(read, str(path), preparation))
            if len(under_way) > most:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read(path: str, preparation: Preparation) -> _Picture | Unreadable:
    """As `harness.data.images` reads those of training."""
    try:
        with any_size():
            picture, kind = decoded(path, read_file(path), preparation.max_megapixels)
        size, how = picture.size, (preparation.size, preparation.resize, Image.Resampling.BILINEAR)
        pixels = resized(in_rgb(path, picture, kind, preparation), *how)
    except DataError as error:
        return Unreadable(path, str(error))
    rows, columns = middle(preparation.size, preparation.crop)
    return _Picture(path, np.ascontiguousarray(pixels[rows, columns]), size)
