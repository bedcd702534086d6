"""A training step as one piece that is launched at once: a worker keeps those of several shapes, for all runs of each.

On a GPU the host takes longer to launch a plain step's operations than the card to do them. Recorded as a CUDA graph of
the same kernels a step is one launch with the same numbers. A graph knows memory by its address, so what a step reads
and writes stays where it is, and every run of a shape trains the students of the first:

- before the first run a snapshot is taken, steps of each size of batch are done as they are, put back, recorded, done
  again and compared bit for bit. Whatever goes wrong, the students end as they began and the run goes step by step;
- before each run its fresh students are copied in, and the optimizers' state, the counter and the sum of losses zeroed;
- before each epoch its order of images and its rates are copied in, and the counter set;
- a step takes what the counter points at and moves it on. Nothing comes from the host.
"""

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from dskd.config import to_mapping
from dskd.distiller import Distiller
from dskd.switches import Train
from harness.job import shape_of
from harness.run.batches import index_of, to_images
from harness.run.checkpoint import Parts
from harness.run.compiled import MOST_SHAPES, State, is_shared, put_state, state_of
from harness.run.device import Device, autocast
from harness.run.features import TeacherFeatures
from harness.run.learner import Average, Learner, make_optimizers, rate_type, scheduler, with_students
from harness.run.memory import free_memory
from harness.run.passes import Passes
from harness.run.recorder import Recorder, Step, equal, reason_of, recorder_of, require_in_place
from harness.run.sections import is_watched, section
from harness.spec import TrainSpec

Facts = Callable[[], dict[str, Any]]
TRIAL = 3  # steps of each size, before and after the recording: the second is the first that finds a state
BETWEEN_STEPS = {"lr", "encoder_lr", "schedule", "epochs", "select", "holdout"}  # of a recipe: in no recorded step
log = logging.getLogger(__name__)


class WholeStep:
    """The step of one shape on the images of one set of features: its state, and what does it once for each size of
    batch.

    Args:
        distiller: of the first run, whose students all runs train.
        images: trained on in an epoch.

    Attributes:
        sizes: of batches, each with the number of the step within an epoch that its trial is.
        replays: by size, after `record`.
        passes: of the same students, over batches that are measured.
    """

    def __init__(
        self,
        distiller: Distiller,
        spec: TrainSpec,
        device: Device,
        features: TeacherFeatures,
        images: int,
        recorder: Recorder,
    ) -> None:
        self.recipe, self.place, self.features, self.recorder = spec.method.train, device.place, features, recorder
        self.batch = batch = self.recipe.batch_size
        whole, rest = divmod(images, batch)
        self.sizes = ({batch: 0} if whole else {}) | ({rest: whole} if rest else {})
        self.students = distiller.students
        self.model = with_students(distiller, self.students)
        # Not the device: its Accelerator holds the optimizers of the run that it is of.
        self.autocast = functools.partial(autocast, device.place.type, device.precision)
        self.optimizers = capturable(self.students, self.recipe, self.place)
        self.average = Average(self.students, self.recipe.ema) if self.recipe.ema else None
        averaged = [with_students(distiller, self.average.module)] if self.average is not None else []
        self.passes = Passes([self.model, *averaged], self.autocast, recorder)
        self.order = torch.arange(images, device=self.place)
        self.within = torch.arange(batch, device=self.place)
        self.done = torch.zeros(1, dtype=torch.int64, device=self.place)  # steps of the epoch
        self.rates = [rate_of(one).repeat(whole + bool(rest)) for one in self.optimizers]
        self.total = torch.zeros((), device=self.place)
        self.replays: dict[int, Step] = {}
        self.held: dict[str, Tensor] = {}

    def step(self, size: int) -> None:
        """Of the epoch's next `size` images: the operations of `Learner.step`, in its order."""
        index = self.order.index_select(0, self.within[:size] + self.done * self.batch)
        images = to_images(self.features.pixels.index_select(0, index))
        expected = [scale.index_select(0, index).permute(0, 3, 1, 2) for scale in self.features.scales]
        with self.autocast():  # within the recording: its casts of weights must not outlive it
            loss = self.model.loss(images, expected)
        loss.backward()
        if self.recipe.clip:
            clip_grad_norm_(self.students.parameters(), self.recipe.clip)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            rate_of(optimizer).copy_(rates.index_select(0, self.done)[0])
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.blend(self.students, begun=True)
        self.total += loss.detach() * size
        self.done += 1

    def record(self) -> str:
        """Try the steps and record them; why they cannot be used, empty if they can. The students and the generators of
        random numbers end as they were.
        """
        start = copy.deepcopy(state_of(self.students))
        mode = self.students.training
        self.students.train()
        try:
            with torch.random.fork_rng([self.place] if self.place.type == "cuda" else []), section("capture"):
                self._record(start)
        except Exception as error:  # whatever stands in a recording's way, the training does not need it
            self.replays.clear()
            return reason_of(error)
        finally:
            self.begin(start)
            self.students.train(mode)
        return ""

    def _record(self, start: State) -> None:
        """Raises RuntimeError where what was recorded is another step."""
        plain = {size: functools.partial(self.step, size) for size in self.sizes}
        self.recorder.rehearse(lambda: self._try(plain))
        self.held = {name: tensor.detach() for name, tensor in self.used()}
        expected = {name: tensor.clone() for name, tensor in self.changed()}
        self.begin(start)
        self.replays = {size: self.recorder.capture(step) for size, step in plain.items()}
        self.begin(start)
        self._try(self.replays)
        self.check()
        found = dict(self.changed())
        other = [name for name in expected if not equal(found[name], expected[name])]
        if other:
            raise RuntimeError(
                f"{len(other)} of {len(expected)} tensors are not what plain steps make of them: {', '.join(other[:3])}"
            )

    def _try(self, steps: Mapping[int, Step]) -> None:
        for _ in range(TRIAL):
            for size, number in self.sizes.items():
                self.done.fill_(number)
                steps[size]()

    @torch.no_grad()
    def begin(self, fresh: State) -> None:
        """A run begins: nothing is left of another one, or of one that ended within a step."""
        put_state(self.students, fresh)
        self.students.zero_grad()
        if self.average is not None:
            put_state(self.average.module, fresh)
            self.average.n_averaged.zero_()
        for _, tensor in self._optimized():
            tensor.zero_()  # for SGD that is a first step too: momentum times 0
        self.total.zero_()
        self.done.zero_()

    def begin_epoch(self, order: np.ndarray, rates: Sequence[np.ndarray], done: int) -> None:
        """An epoch begins, or goes on after `done` steps.

        Args:
            order: of the images, their positions in the features; rates: of each optimizer, by step of the epoch.

        Raises:
            RuntimeError: a tensor is not where it was recorded.
        """
        self.check()
        self.order.copy_(index_of(order, self.place))
        for own, given in zip(self.rates, rates, strict=True):
            own.copy_(index_of(np.array(given), self.place))
        self.done.fill_(done)

    def check(self) -> None:
        """Raises RuntimeError for a tensor that is not where it was when the steps were recorded."""
        require_in_place(self.held, self.used())

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """All that a step writes, by name."""
        modules = {"students": self.students} | ({"average": self.average.module} if self.average is not None else {})
        for of, module in modules.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{of}.{name}", tensor
        yield from self._optimized()
        yield from ((f"rate {number}", rate_of(one)) for number, one in enumerate(self.optimizers))
        yield from (("done", self.done), ("total", self.total))

    def _optimized(self) -> Iterator[tuple[str, Tensor]]:
        for number, optimizer in enumerate(self.optimizers):
            for at, name, tensor in states(optimizer):
                yield f"optimizer {number}.{at}.{name}", tensor

    def used(self) -> Iterator[tuple[str, Tensor]]:
        """All that a step reads or writes, by name."""
        yield from (("order", self.order), ("within", self.within), ("pixels", self.features.pixels))
        yield from ((f"rates {number}", one) for number, one in enumerate(self.rates))
        yield from ((f"scale {number}", one) for number, one in enumerate(self.features.scales))
        yield from self.changed()


def capturable(students: torch.nn.Module, recipe: Train, place: torch.device) -> list[Optimizer]:
    """The recipe's optimizers, in a form that a graph can hold: the rate is a tensor, counts of steps are too."""
    made = make_optimizers(students, recipe)
    for optimizer in made:
        (group,) = optimizer.param_groups
        group["lr"] = torch.tensor(group["lr"], dtype=rate_type(place), device=place)
        if "capturable" in group:  # SGD has no such switch, since it counts nothing
            group["capturable"] = True
    return made


def rate_of(optimizer: Optimizer) -> Tensor:
    return optimizer.param_groups[0]["lr"]


def states(optimizer: Optimizer) -> Iterator[tuple[int, str, Tensor]]:
    """An optimizer's state: number of the parameter, name, tensor."""
    for at, parameter in enumerate(optimizer.param_groups[0]["params"]):
        for name, tensor in optimizer.state.get(parameter, {}).items():
            if tensor is not None:
                yield at, name, tensor


def rates_of(students: torch.nn.Module, recipe: Train, steps: int) -> list[np.ndarray]:
    """Of each optimizer the rate of every step of a training, exact."""
    found = []
    for optimizer in make_optimizers(students, recipe):
        schedule = scheduler(optimizer, recipe, steps)
        (group,) = optimizer.param_groups
        if schedule is None:
            found.append(np.broadcast_to(group["lr"], steps))
            continue
        optimizer.step()  # there are no gradients; torch wants it before a schedule moves
        rates = np.empty(steps)
        for step in range(steps):
            rates[step] = group["lr"]
            schedule.step()
        found.append(rates)
    return found


class GraphedLearner(Learner):
    """A learner whose steps are those of a `WholeStep`: of one process, with the features on the device.

    Its checkpoints are those of plain steps, and either goes on from the other's.
    """

    def __init__(self, whole: WholeStep, distiller: Distiller, spec: TrainSpec, device: Device, images: int) -> None:
        fresh = distiller.students
        whole.begin(state_of(fresh))
        whole.students.method = fresh.method
        distiller.students = whole.students
        super().__init__(distiller, spec, device, images)
        self.whole, self.total = whole, whole.total
        if whole.average is not None:
            self.average = whole.average
            self.measured = with_students(distiller, whole.average.module)
        recipe = spec.method.train
        self._rates = rates_of(self.plain, recipe, recipe.epochs * self.steps_per_epoch)
        for optimizer in self.optimizers:  # without gradients they only carry the schedules, for checkpoints
            optimizer.step()
        self._sizes: Iterator[int] = iter(())

    def begin_epoch(self, features: TeacherFeatures, order: np.ndarray, epoch: int, done: int = 0) -> None:
        if features is not self.whole.features:
            raise RuntimeError("the steps were recorded on other features")
        self.train_on()
        first = (epoch - 1) * self.steps_per_epoch
        self.whole.begin_epoch(order, [rates[first : first + self.steps_per_epoch] for rates in self._rates], done)
        batch = self.whole.batch
        self._sizes = iter([len(order[at : at + batch]) for at in range(done * batch, len(order), batch)])

    def next_step(self) -> None:
        self.whole.replays[next(self._sizes)]()
        if self.average is not None:
            if not self.average.n_averaged:  # that number lies on the host; the first step's average is the students
                self.average.blend(self.plain, begun=False)
            self.average.n_averaged += 1
        for schedule in self.schedules:
            if schedule is not None:
                schedule.step()

    def parts(self, shards: Any) -> Parts:
        pairs = zip(self.optimizers, self.whole.optimizers, strict=True)
        optimizers = {f"optimizer {number}": InPlace(*pair) for number, pair in enumerate(pairs)}
        return {**super().parts(shards), **optimizers}


class InPlace:
    """An optimizer that a graph holds, as a part of a checkpoint: in the layout of the plain one, and loaded into the
    memory that it has.
    """

    def __init__(self, plain: Optimizer, held: Optimizer) -> None:
        self.plain, self.held = plain, held

    def state_dict(self) -> dict[str, Any]:
        return self.plain.state_dict() | {"state": self.held.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plain.load_state_dict(state | {"state": {}})  # the rates that the schedules go on from
        for at, name, tensor in states(self.held):
            if at in state["state"]:
                tensor.copy_(state["state"][at][name])
            else:
                tensor.zero_()


class WholeSteps:
    """What a worker keeps of recorded steps: MOST_SHAPES of them, or why a shape's cannot be recorded.

    Args:
        recorder_of: what records on a kind of device, None where nothing does.
    """

    def __init__(self, recorder_of: Callable[[str], Recorder | None] = recorder_of) -> None:
        self.kept: dict[object, WholeStep | str] = {}
        self.recorder_of = functools.cache(recorder_of)

    def forget(self) -> None:
        """Before the features go that the steps read."""
        self.kept.clear()

    def passes(self, distiller: Distiller) -> Passes | None:
        """Those of the model's students, if these are a shape's."""
        shapes = (one for one in self.kept.values() if isinstance(one, WholeStep))
        return next((one.passes for one in shapes if one.passes.has(distiller)), None)

    def learner(
        self, spec: TrainSpec, distiller: Distiller, device: Device, features: TeacherFeatures, images: int
    ) -> tuple[Learner, Facts]:
        """A run's learner and what its record says of its steps: recorded ones where that can be, else plain ones. The
        model may get other students, which are equal to its own.

        Args:
            images: how many are trained on in an epoch.
        """
        whole = self._of(spec, distiller, device, features, images)
        if isinstance(whole, str):
            learner = Learner(distiller, spec, device, images)
            return learner, lambda: {"compiled": False, "graphed": False, "graph_failure": whole}
        learner = GraphedLearner(whole, distiller, spec, device, images)
        return learner, lambda: {"compiled": False, "graphed": True, "graphed_batches": list(whole.sizes)}

    def _of(
        self, spec: TrainSpec, distiller: Distiller, device: Device, features: TeacherFeatures, images: int
    ) -> WholeStep | str:
        recorder = self.recorder_of(device.place.type)
        if recorder is None:
            return f"nothing records steps on a {device.place.type}"
        if device.processes > 1:
            return "steps of several processes are not recorded"
        if features.kept != "device":
            return f"the teacher's features are not on the device ({features.kept})"
        if is_watched():
            return "the sections of its steps are timed"
        recipe = {key: value for key, value in to_mapping(spec.method.train).items() if key not in BETWEEN_STEPS}
        key = shape_of(spec), repr(recipe), images, device.precision, device.place
        if (found := self.kept.get(key)) is not None and (isinstance(found, str) or found.features is features):
            return found
        if len(self.kept) >= MOST_SHAPES:
            self.kept.clear()
        whole: WholeStep | str = WholeStep(distiller, spec, device, features, images, recorder)
        if failure := whole.record():
            whole = failure
            free_memory()
            log.warning("steps cannot be recorded, they are launched one by one: %s", failure)
        if is_shared(distiller.students):
            self.kept[key] = whole
        return whole
