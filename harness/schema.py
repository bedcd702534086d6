"""What readers rely on in records and failed attempts, as shapes: see `harness.shapes`.

Strict about what is read and silent about the rest, so that records of all earlier commits pass, and those of a later
one that has more to say.
"""

from harness.shapes import AnyOf, Each, Null, Number, OneOf, Part, Time

NUMBER = Number("a finite number")
NOT_NEGATIVE = Number("a number of 0 or more", low=0)
POSITIVE = Number("a number above 0", low=0, above=True)
COUNT = Number("a whole number of 1 or more", low=1, whole=True)
SIZE = AnyOf((COUNT, (COUNT, COUNT)), "a whole number of 1 or more, or a list of two such numbers,")
SHARE = Null(Number("a share from 0 to 1 or null", low=0, high=1 + 1e-6))  # sums of floats may end above 1
SEED = Number("a whole number", low=-(2**64), high=2**64, whole=True)
KIND = OneOf(("train", "evaluate", "bench"))

ENVIRONMENT = {"packages?": dict, "commit?": Null(str), "os?": str, "plugins?": dict}
HEAD = {  # of a record and of an attempt
    "kind": KIND,
    "id": str,
    "spec": dict,
    "environment": ENVIRONMENT,
    "started_at": Time(),
    "schema": COUNT,
}
RECORD = {**HEAD, "result": dict, "wall_s": NOT_NEGATIVE, "grid?": str}

CALLED = Each((OneOf(("method", "backbone", "dataset")), str), of=list)  # pairs: what the `label` of an entry says
_TRAIN = {
    "method": Part({"name": str, "recipe?": str, "map": dict, "score": object, "train": {"epochs": COUNT}}),
    "backbone": str,
    "weights": {"name": str, "sha256": Null(str)},
    "data": Part(
        {
            **dict.fromkeys(("name", "category", "manifest"), str),
            "options": Each((str, object), of=list),
            "train_images?": NOT_NEGATIVE,
            "test_images?": NOT_NEGATIVE,
            "test_manifest?": str,
        }
    ),
    "seed": SEED,
    "image_size": SIZE,
    "eval_batch_size": COUNT,
    "called?": CALLED,
}
_FACTS = {"device?": str, "device_type?": str, "mps?": bool}
_MEMORY = {"peak_device_memory_mib?": Null(NOT_NEGATIVE), "peak_host_memory_mib?": Null(NOT_NEGATIVE)}
_METRICS = (f"{level}_{metric}?" for level in ("image", "pixel") for metric in ("auroc", "ap", "f1_max"))
_RATE = Null(Number("a share between 0 and 1 or null", low=0, high=1))
_AT_THRESHOLD = [f"{metric}_at_threshold" for metric in ("fpr", "recall", "precision", "f1")]
_THRESHOLDS = {  # of normal images that were held out; of F1-max in every later record
    "image_f1_max_threshold?": Null(NUMBER),
    **dict.fromkeys(("threshold?", "pixel_threshold?"), Null(NUMBER)),
    **dict.fromkeys(("thresholds?", "pixel_thresholds?"), Each(Null(NUMBER))),
    **dict.fromkeys(("false_alarm_rate?", "least_false_alarm_rate?"), _RATE),
    **dict.fromkeys(("calibration_images?", "calibration_groups?"), COUNT),
    **{f"{metric}?": SHARE for metric in (*_AT_THRESHOLD, "pixel_fpr_at_threshold")},
    **{f"{metric}_interval?": Null((SHARE, SHARE)) for metric in _AT_THRESHOLD},
}
_SPECS = {
    "train": _TRAIN,
    "evaluate": {"train": _TRAIN, "map": dict, "score": object, "aupro_limits": list, "label?": str},
    "bench": {
        "method": {"name": str},
        "backbone": str,
        "image_size": SIZE,
        "precision": str,
        "device": str,
        "threads": object,
        "called?": CALLED,
    },
}
_RESULTS = {
    "train": {
        **_FACTS,
        **_MEMORY,
        "train_s?": POSITIVE,
        "images_per_s?": NOT_NEGATIVE,
        "epochs?": COUNT,
        "step?": COUNT,
        "parameters_students?": NOT_NEGATIVE,
        "pictures?": dict.fromkeys(("width", "height", "aspect"), (NOT_NEGATIVE, NOT_NEGATIVE)),
    },
    "evaluate": {
        **_FACTS,
        "precision": str,
        **dict.fromkeys(_METRICS, SHARE),
        "aupro_*": SHARE,
        "aupimo?": SHARE,
        **_THRESHOLDS,
        "standardisation?": Each(Each((NUMBER, NUMBER), of=list)),
    },
    "bench": {
        **_FACTS,
        **_MEMORY,
        "precision": str,
        "images_per_s": POSITIVE,
        "protocol?": COUNT,
        "best_batch_size?": COUNT,
        "single_stream?": {
            **dict.fromkeys((f"latency_p{percentile}_ms?" for percentile in (50, 90, 95, 99)), NOT_NEGATIVE),
            "latency_std_ms?": NOT_NEGATIVE,
            "stages?": Each(Null(NUMBER)),
        },
        "offline?": Each({"batch_size": COUNT, "images_per_s": NOT_NEGATIVE}, of=list),
        "gmac?": Null(NOT_NEGATIVE),
        "parameters_teacher?": NOT_NEGATIVE,
        "parameters_students?": NOT_NEGATIVE,
        "energy_per_1000_images_j?": Null(NUMBER),
        "disturbed?": Null(bool),
        "measurements?": COUNT,
        "foreign_cpu_share?": Null(NOT_NEGATIVE),
        "foreign_gpu_processes?": Null(NOT_NEGATIVE),
        **dict.fromkeys(("gpu_before?", "gpu_after?"), Null({"throttled?": Null(Each(str, of=list))})),
    },
}
CONTENT = {kind: {"spec": _SPECS[kind], "result": _RESULTS[kind]} for kind in KIND.options}

# What names a run; an attempt may be put down before more is known of it.
_NAMES = {
    "method?": {"name": str, "recipe?": str},
    "backbone?": str,
    "data?": {"name": str, "category": str},
    "seed?": SEED,
    "called?": CALLED,
}
FAILURE = {
    **HEAD,
    "spec": {**_NAMES, "train?": _NAMES, "label?": str},
    "reason": str,
    "message": str,
    "traceback": str,
    "attempt?": Number("a whole number", low=0, whole=True),
    "peak_host_memory_mib?": Null(NOT_NEGATIVE),
    "peak_device_memory_mib?": Null(NOT_NEGATIVE),
}

_WHOLE = Number("a whole number", whole=True)
CLAIM = {"host?": str, "pid?": _WHOLE, "restart?": _WHOLE}
SUBMISSION = {
    "jobs": Each({"id": str, "offset": Number("a whole number of 0 or more", low=0, whole=True)}, of=list),
    "runs": Each(Each(str, of=list)),
}
