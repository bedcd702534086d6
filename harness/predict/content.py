"""What decides the maps, scores and decisions of a trained model beside its weights, as plain data.

No torch is imported here.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dskd import conformal
from dskd.config import ConfigError, require
from dskd.lookup import get_backbone
from dskd.size import Size, sides, size_text
from harness import packaged
from harness.data.catalog import Source
from harness.data.depth import Range
from harness.data.references import REFERENCES
from harness.naming import defaults_of, recorded_settings, title, variant
from harness.records import Record
from harness.run_folder import Calibrated
from harness.spec import EvaluateSpec, Weights

WITHOUT = (
    "its run held out no normal images to make a threshold from; write calibrate: 0.2 in its grid and run that again"
)


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes what the networks see: as in training (`harness.data.images`).

    Attributes:
        name: of the data set, for messages; range, max_megapixels, resize: as of `Source`; size, crop: of `TrainSpec`.
    """

    name: str
    size: Size
    crop: int = 0
    resize: str = "square"
    range: Range | None = None
    max_megapixels: float = Source.max_megapixels

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what the networks see, and of the maps."""
        return sides(self.crop or self.size)

    def in_picture(
        self, box: tuple[float, float, float, float], picture: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """A box of a map in the picture that it is of: both are (left, top, right, bottom) in pixels, right and bottom
        being where it ends.

        Args:
            picture: its width and height.
        """
        (height, width), (own_width, own_height) = sides(self.size), picture
        fitted = width, height
        if self.resize == "pad":  # as `PIL.ImageOps.contain` rounds
            if own_width / own_height > width / height:
                fitted = width, round(own_height / own_width * width)
            else:
                fitted = round(own_width / own_height * height), height
        found = []
        for place, (side, inner, own) in enumerate(zip((width, height), fitted, picture, strict=True)):
            start = (side - self.crop) // 2 if self.crop else 0
            start -= round((side - inner) * 0.5)
            found.append([min(max((each + start) * own / inner, 0.0), float(own)) for each in box[place::2]])
        (left, right), (top, bottom) = found
        return left, top, right, bottom


@dataclass(frozen=True)
class Content:
    """All of a trained model but its tensors.

    Attributes:
        spec: of the evaluation whose maps and scores are made.
        precision: what `auto` became there; batch_size: that its batches had; device_type: of its device.
        preparation: of pictures.
        pictures: least and greatest width, height and aspect (width / height) of the pictures of training; empty where
            that is not known.
        standardisation: of maps that are standardised by normal images (`dskd.anomaly_map.Calibration`), else None.
        rate: the false alarm rate that `threshold` and `pixel_threshold` are for; these are None where there were no
            normal images to make them from, or too few. thresholds, pixel_thresholds: of more rates, by their text.
        calibration: score and weight (`dskd.conformal.unit_weights`) of each normal image that thresholds are made
            from; empty where there are none.
        plugins: by name the versions of those that the run was done with.
        about: name, method, backbone, data set, category, when it was trained, commit, versions, licences.
    """

    spec: EvaluateSpec
    precision: str
    batch_size: int
    preparation: Preparation
    device_type: str = "cpu"
    pictures: dict[str, Any] = field(default_factory=dict)
    standardisation: dict[str, Any] | None = None
    rate: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    thresholds: dict[str, Any] = field(default_factory=dict)
    pixel_thresholds: dict[str, Any] = field(default_factory=dict)
    calibration: tuple[tuple[float, float], ...] = ()
    plugins: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def scores_and_weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the normal images that thresholds are made from; None where there are none."""
        if not self.calibration:
            return None
        scores, weights = np.array(self.calibration, np.float64).T
        return scores, weights

    def threshold_at(self, rate: float) -> float:
        """What scores are compared with for this false alarm rate: an image with a higher one is anomalous.

        Raises:
            ConfigError: a rate outside of (0, 1), no normal images to make it from, or too few for the rate.
        """
        require(0 < rate < 1, f"rate: {rate} is not possible; write a number between 0 and 1, such as 0.05")
        if (stored := _at(self.thresholds, rate)) is not None:
            return stored
        if self.scores_and_weights is None:
            raise ConfigError(f"rate: {rate} needs a calibration: {WITHOUT}")
        scores, weights = self.scores_and_weights
        found = conformal.threshold(scores, weights, rate)
        if found is None:
            raise ConfigError(f"rate: {rate} is too low: {_attainable(weights)}")
        return found

    def pixel_threshold_at(self, rate: float) -> float:
        """What values of maps are compared with, so that of a normal image's pixels a share `rate` is above it in the
        mean. Only the rates of the evaluation have one, since it takes the maps of the normal images.

        Raises:
            ConfigError: another rate, or one that there were too few normal images for.
        """
        found = _at(self.pixel_thresholds, rate)
        if found is not None:
            return found
        if not self.pixel_thresholds:
            raise ConfigError(f"rate: {rate} needs a calibration: {WITHOUT}")
        known = [text for text, value in self.pixel_thresholds.items() if value is not None]
        raise ConfigError(
            f"rate: {rate} has no pixel threshold, it is made in the evaluation; write one of {', '.join(known)}, or "
            f"false_alarm_rate: {rate} in an entry of `evaluate` and run the grid again"
        )

    def lacking(self) -> str:
        """Why there is no threshold for the evaluation's own rate; empty where there is one."""
        if self.threshold is not None:
            return ""
        if self.scores_and_weights is None:
            return f"no decisions: {WITHOUT}"
        return f"no decisions: a false alarm rate of {self.rate} is too low: {_attainable(self.scores_and_weights[1])}"

    def is_as_in_training(self, width: int, height: int) -> bool:
        """Whether a picture has a size and an aspect that pictures of training had; true where these are not known."""
        values = {"width": width, "height": height, "aspect": width / height}
        return all(low <= values[key] <= high for key, (low, high) in self.pictures.items())


def _at(thresholds: dict[str, Any], rate: float) -> float | None:
    return next((value for text, value in thresholds.items() if float(text) == rate), None)


def _attainable(weights: np.ndarray) -> str:
    groups = round(float(weights.sum()))
    least = math.ceil(conformal.least_rate(groups) * 1000) / 1000
    return (
        f"its run had {len(weights)} normal images in {groups} groups for thresholds, which allow {least:g} or more; "
        "write that, or give it more (a larger share in calibrate: of its grid, or more images)"
    )


def content_of(training: Record, evaluation: Record, spec: EvaluateSpec, calibrated: list[Calibrated]) -> Content:
    """From the records of a training and of one of its evaluations. Pure.

    Args:
        spec: the evaluation's, parsed; calibrated: the lines of its calibration.csv.
    """
    train, result = spec.train, evaluation.result
    options = dict(train.data.options)
    bounds = tuple(json.loads(options["range"])) if "range" in options else None
    weights = conformal.unit_weights([each.group or each.path for each in calibrated])
    return Content(
        spec=spec,
        precision=result["precision"],
        batch_size=result.get("lowered_batch_size", train.eval_batch_size),
        preparation=Preparation(
            train.data.name, train.image_size, train.crop, options.get("resize", Source.resize), bounds
        ),
        device_type=result.get("device_type", "cpu"),
        pictures=training.result.get("pictures", {}),
        standardisation=result.get("standardisation"),
        rate=result.get("false_alarm_rate"),
        threshold=result.get("threshold"),
        pixel_threshold=result.get("pixel_threshold"),
        thresholds=result.get("thresholds", {}),
        pixel_thresholds=result.get("pixel_thresholds", {}),
        calibration=tuple((each.score, float(weight)) for each, weight in zip(calibrated, weights, strict=True)),
        plugins=training.environment.get("plugins", {}) | evaluation.environment.get("plugins", {}),
        about=_about(training, evaluation, spec),
    )


def _about(training: Record, evaluation: Record, spec: EvaluateSpec) -> dict[str, Any]:
    train = spec.train
    environment = training.environment
    settings, defaults = recorded_settings(evaluation.spec), defaults_of(train.method.name, train.method.recipe)
    own = {key: value for key, value in settings.items() if key.startswith("map.") or key == "score"}
    changed = {key: value for key, value in own.items() if value != defaults.get(key)}
    return {
        "name": f"{title(spec)} {variant(changed, spec.label)}".rstrip(),
        "method": train.method.name,
        "recipe": train.method.recipe,
        "backbone": train.backbone,
        "weights": train.weights.name,
        "dataset": train.data.name,
        "category": train.data.category,
        "seed": train.seed,
        "image_size": size_text(train.image_size),
        "crop": train.crop,
        "grid": training.grid,
        "training": training.id,
        "evaluation": evaluation.id,
        "trained": training.started_at,
        "commit": environment.get("commit"),
        "versions": environment.get("packages", {}),
        "licences": {
            "weights": _licence_of_weights(train.weights, train.backbone),
            "data": _licence_of_data(train.data.name),
        },
    }


def _licence_of_weights(weights: Weights, backbone: str) -> str:
    if weights.sha256 is None:
        return "none: random weights"
    if weights.name == packaged.NAME:
        return "Apache-2.0, by the LICENSE file of the package"
    if weights.name == "imagenet":
        return f"as https://huggingface.co/timm/{get_backbone(backbone).imagenet} says; trained on ImageNet"
    return f"not known: {weights.name} is a file of the user's"


def _licence_of_data(name: str) -> str:
    if name in REFERENCES:
        return f"{REFERENCES[name].licence} ({REFERENCES[name].homepage})"
    return "Apache-2.0: drawn by this package" if name == "surfaces" else "not known: data of the user's"
