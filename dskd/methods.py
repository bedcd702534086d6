"""The named methods: frozen configs of one `Distiller`, each with its own published recipe. No torch is imported here.

Every student-teacher method of this package is a frozen teacher pyramid, one or more student pyramids of the same
shapes, a discrepancy per scale, a loss that averages it and a map that fuses it. A method is therefore a value of
`Method`, and an ablation is `dskd.config.replace(METHODS["dskd"], {"embedding.source": "teacher"})`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from dskd.backbones import Backbone
from dskd.config import ConfigError, replace, require, suggest
from dskd.inverted import check_decoder
from dskd.switches import Embedding, Encoder, Loss, Map, Method, Train
from dskd.tuned import TUNED, TUNED_ON

REVISION = 1  # raised by hand when a fix in `dskd` changes numbers; part of every run's identity

METHODS: dict[str, Method] = {}
ABOUT: dict[str, str] = {}  # one line on each, for people
STUDENTS: dict[str, type] = {}  # of the methods that bring their own module of students
T = TypeVar("T", bound=type)


def add(method: Method, about: str) -> Method:
    """Make a method known by its name. Raises ConfigError for a name that is taken."""
    require(method.name not in METHODS, f"method {method.name!r} exists already; choose another name")
    METHODS[method.name], ABOUT[method.name] = method, about
    return method


def register_method(method: Method) -> Callable[[T], T]:
    """Class decorator of a plug-in: make `method` known, with the decorated subclass of `Students` as its students.

    The first line of the class's docstring is what `harness methods` says about it.
    """

    def decorate(cls: T) -> T:
        add(method, (cls.__doc__ or "").strip().partition("\n")[0])
        STUDENTS[method.name] = cls
        return cls

    return decorate


def get_method(name: str, recipe: str = "own", data: str = "") -> Method:
    """The named method's config under a recipe.

    Args:
        recipe: `own`, `common`, or `tuned`, with the name of the data set where it was chosen (`tuned_on_mtd`) or
            without: then the first that was chosen on another than `data`.
        data: the name of the data set to run on.

    Raises:
        ConfigError: a name that does not exist, with the near match, or a recipe that the method does not have or that
            was chosen on `data` itself.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; {suggest(name, METHODS)}")
    if recipe.startswith(TUNED_ON) or recipe == "tuned":
        return tuned(METHODS[name], recipe, data)
    if recipe not in ("own", "common"):
        raise ConfigError(f"recipe: {recipe!r} is not possible; {suggest(recipe, ['own', 'common', 'tuned'])}")
    return common(METHODS[name]) if recipe == "common" else METHODS[name]


def tuned(method: Method, recipe: str, data: str) -> Method:
    """The method under a recipe that a search chose for it, with all but its architecture as that one has it. Raises
    ConfigError as `get_method` does.
    """
    possible = {TUNED_ON + where: where for where, recipes in TUNED.items() if method.name in recipes}
    names = [each for each in METHODS if any(each in recipes for recipes in TUNED.values())]
    require(
        bool(possible),
        f"recipe: {recipe} is known for {', '.join(names) or 'no method'}, and not for {method.name}; `harness search` "
        "finds one",
    )
    if recipe == "tuned":
        recipe = next((each for each, where in possible.items() if where != data), "")
        require(bool(recipe), f"recipe: tuned of {method.name} was chosen on {data} alone; run it on other images")
    if recipe not in possible:
        raise ConfigError(f"recipe: {recipe!r} is not possible; {suggest(recipe, possible)}")
    where = possible[recipe]
    require(
        where != data,
        f"recipe: {recipe} was chosen by the test images of {data} and cannot be reported on them; write recipe: tuned",
    )
    return replace(method, {"recipe": recipe, **TUNED[where][method.name]})


def common(method: Method) -> Method:
    """The method under DSKD's loss, fusion, smoothing, score and training, so that a difference is architecture's.

    A method whose own recipe is just that stays as it is: it is one run, not two.
    """
    parts = {name: getattr(METHODS["dskd"], name) for name in ("loss", "map", "score", "train")}
    if all(getattr(method, name) == part for name, part in parts.items()):
        return method
    return dataclasses.replace(method, recipe="common", **parts)


DSKD = add(
    # The outline is the abstract's (two students of one scale and inverted structure, pyramid matching, interaction
    # through a deep feature embedding). The recipe is not public: optimizer, epochs, batch and smoothing are reverse
    # distillation's, the per-position loss is shared by both baselines (our choice).
    Method(name="dskd", students=("encoder", "decoder")),
    "two students of inverted structure, joined by a deep feature embedding; Yao & Gao 2024, after its abstract",
)
STFPM = add(
    # The official code gdwang08/STFPM@2598a5e: loss without the factor 1/2, mean over batch and positions, product of
    # scales at 64x64, no smoothing, 20 % of the normals held out and the epoch with the lowest mean map kept.
    # (anomalib and hcw-00 step 16 times as far at batch 32.)
    Method(
        name="stfpm",
        students=("encoder",),
        loss=Loss(kind="l2norm"),
        map=Map(discrepancy="l2norm", scale_fuse="mul", fuse_at="scale1", sigma=0.0),
        train=Train(optimizer="sgd", lr=0.4, weight_decay=1e-4, epochs=100, batch_size=32, select="val_normal"),
    ),
    "identical student (the vanilla S-T network); Wang et al., BMVC 2021, official code",
)
add(
    # The official code hq-deng/RD4AD@6554076: one cosine per image over the flattened map (the paper's notes describe
    # one per position), sum of scales, aligned corners, sigma 4; block counts in encoder order; wide bottleneck for
    # wide_resnet50_2; beta2 0.999 (anomalib: 0.99, narrow bottleneck, two blocks for resnet34).
    Method(
        name="reverse_distillation",
        students=("decoder",),
        embedding=Embedding(source="teacher"),
        loss=Loss(kind="flat_cos"),
        map=Map(align_corners=True),
    ),
    "inverted student behind a bottleneck; Deng & Li, CVPR 2022, official code",
)
add(
    # Our choice of trunk: half of ResNet-18's blocks. It was published by nobody in this place; recipe: STFPM's.
    dataclasses.replace(STFPM, name="smaller_student", encoder=Encoder(backbone="resnet10t")),
    "STFPM with a smaller trunk as student, 1x1 adapters; recipe of STFPM",
)
add(
    dataclasses.replace(STFPM, name="different_family_student", encoder=Encoder(backbone="mobilenetv3_large_100")),
    "STFPM with a trunk of another family as student, 1x1 adapters; recipe of STFPM",
)
add(
    # "STFPM + reverse distillation": both students of DSKD, but the embedding reads the teacher. Recipe: DSKD's.
    dataclasses.replace(DSKD, name="two_students", embedding=Embedding(source="teacher")),
    "DSKD's two students without their interaction: the embedding reads the teacher; recipe of DSKD",
)
add(
    # Bergmann et al., CVPR 2020, on this trunk instead of patch networks, so "in the manner of": k students regress the
    # teacher, the map is the error of their mean plus their disagreement, both standardised on normal images. Features
    # are compared as unit vectors (a trunk ends in ReLU and cannot regress the paper's standardised targets), optimizer
    # as denguir/student-teacher-anomaly-detection@fc279ef; its 15 epochs at batch 1 are about as many steps as these.
    Method(
        name="student_ensemble",
        students=("encoder",),
        encoder=Encoder(count=3),
        loss=Loss(kind="l2norm"),
        map=Map(student_fuse="error_disagreement", sigma=0.0),
        train=Train(lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-5),
    ),
    "three identical students, error and disagreement: after Uninformed Students (Bergmann et al., CVPR 2020)",
)


def check_students(method: Method, teacher: Backbone, student: Backbone) -> None:
    """Raises ConfigError for students or an embedding that this teacher's backbone cannot go with.

    Args:
        student: the encoder student's trunk, the teacher's where the method names no other.
    """
    own = method.encoder.backbone
    require(
        own != teacher.name,
        f"encoder.backbone: {own} is the teacher's own trunk; name another one, or method: stfpm for it",
    )
    require(
        student.strides == teacher.strides,
        f"encoder.backbone: the maps of {own} have strides {list(student.strides)}, the teacher's ({teacher.name}) "
        f"{list(teacher.strides)}; choose trunks of equal strides",
    )
    require(
        method.embedding.kind != "layer4" or student.deep_tap is not None,
        f"embedding.kind: {student.name} has no fourth map for layer4; write mff_oce, mff_1x1 or oce_only",
    )
    check_decoder(method, teacher, student)
