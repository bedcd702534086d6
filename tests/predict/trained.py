"""A tiny trained run with thresholds, for the tests of this folder."""

import json
from pathlib import Path

import numpy as np

import dskd
from dskd import conformal
from harness.run_folder import Calibrated, RunFolder, read_scores, write_calibration

RATES = (0.05, 0.1)


def calibrate(run: Path, images: Path) -> None:
    """Give an evaluation thresholds and calibration scores: those of its normal test images.

    Args:
        run: its folder; images: the root that paths in scores.csv are relative to.
    """
    files = RunFolder(run)
    normal = [line for line in read_scores(files, []) if not line.anomalous]
    write_calibration(files, [Calibrated(line.path, "", line.score) for line in normal])
    weights = conformal.unit_weights([line.path for line in normal])
    maps = np.stack([found.map for found in dskd.load(run).predict([images / line.path for line in normal])])
    scores = np.array([line.score for line in normal])
    image = {str(rate): conformal.threshold(scores, weights, rate) for rate in RATES}
    pixel = {str(rate): conformal.threshold(maps, weights, rate) for rate in RATES}
    record = json.loads(files.record.read_text())
    record["result"] |= {
        "false_alarm_rate": RATES[0],
        "threshold": image[str(RATES[0])],
        "pixel_threshold": pixel[str(RATES[0])],
        "thresholds": image,
        "pixel_thresholds": pixel,
        "calibration_images": len(normal),
        "calibration_groups": len(normal),
    }
    files.record.write_text(json.dumps(record))
