"""Short recipes that `harness search` chose, the same search for each method: by data set of choice and method the
settings in which they differ from the own recipe. No torch is imported here.

Criterion: the mean of image and pixel AUROC over categories and three seeds, less their standard deviation over seeds,
on test images of the data set of choice. Budget: half of the trials of 2 epochs go on with 4, half of those with 8: the
last is a tenth of the passes of STFPM's own recipe at most, and a twenty-fifth of the others'. EfficientNet-Lite0 with
packaged weights, 96x96, fp32, images of 2026-11-26. `surfaces`: benchmarks/searches/tune-surfaces-steady.yaml, 12
trials on five categories of 48 normal images. `mtd`: tune-mtd-steady.yaml beside it, 16 trials on 192 and on 48 of the
normal images of Magnetic Tile Defects. They replace those of two rounds before; benchmarks/results/tuning.md has all,
with trials and commits.
"""

from typing import Any

TUNED_ON = "tuned_on_"
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "surfaces": {
        "dskd": {
            "train.lr": 0.00475,
            "train.schedule": "cosine",
            "train.batch_size": 8,
            "train.ema": 0.8,
            "map.scale_fuse": "mul",
            "map.student_fuse": "mul",
            "map.sigma": 0.0,
            "map.sigma_share": 0.015625,
            "train.epochs": 4,
        },
        "stfpm": {
            "train.lr": 0.176,
            "train.batch_size": 4,
            "train.ema": 0.8,
            "score": "topk_mean",
            "train.epochs": 8,
            "train.select": "last",
        },
        "reverse_distillation": {
            "train.lr": 0.00963,
            "train.schedule": "cosine",
            "train.batch_size": 4,
            "map.scale_fuse": "mul",
            "map.sigma": 0.0,
            "map.sigma_share": 0.015625,
            "train.epochs": 8,
        },
    },
    "mtd": {
        "dskd": {
            "train.lr": 0.00576,
            "train.schedule": "one_cycle",
            "train.batch_size": 8,
            "train.renew_batch_norm": True,
            "loss.scale_weights": [1, 1, 2],
            "map.student_fuse": "mul",
            "map.sigma": 0.0,
            "map.sigma_share": 0.015625,
            "train.epochs": 8,
        },
        "stfpm": {
            "train.lr": 0.675,
            "train.schedule": "cosine",
            "train.batch_size": 4,
            "train.renew_batch_norm": True,
            "loss.scale_weights": [2, 1, 1],
            "map.scale_fuse": "sum",
            "map.sigma_share": 0.015625,
            "score": "topk_mean",
            "train.epochs": 8,
            "train.select": "last",
        },
        "reverse_distillation": {
            "train.lr": 0.00844,
            "train.schedule": "cosine",
            "train.batch_size": 4,
            "train.renew_batch_norm": True,
            "loss.scale_weights": [2, 1, 1],
            "map.scale_fuse": "mul",
            "map.sigma": 0.0,
            "train.epochs": 8,
        },
    },
}
