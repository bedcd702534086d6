"""The students of one training with all that a step changes, on one process or on several."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from dskd.distiller import Distiller
from dskd.switches import Train
from harness.run.batch_norm import Kept, put_back, renew, renewal_batches
from harness.run.batches import index_of, part_of, to_images
from harness.run.checkpoint import Parts, ShardedEngine, Stateful
from harness.run.compiled import Forward
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.processes import dense_copy, fit_to_recipe, gather_parameters, share_batch_norm
from harness.run.sections import section
from harness.spec import TrainSpec

# Torch's fused optimizers read a rate that is a tensor on the GPU as float32, and then count with it as with a number
# (aten/src/ATen/native/cuda/FusedSgdKernel.cu, fused_adam_utils.cuh). On a CPU they read it as it is.
RATES = {"cpu": torch.float64}


class Learner:
    """Students with optimizers, schedules of their rates and, if the recipe asks for it, their moving average.

    On several processes the batches are those of one process (same seed, same order) and each trains on its part of
    each (`part_of`), so that the gradient is the mean over the global batch and the curve's loss is too. It equals one
    process that adds up gradients of micro-batches, not one that sees whole batches: BatchNorm normalises each part by
    itself (unless `train.batch_norm: sync`), and rank 0's running statistics are those that are kept and measured. All
    ranks end with the same students.

    Args:
        distiller: the model; its students are trained in place.
        images: how many are trained on in an epoch.
        forward: a step's loss of (model, images, teacher's features), see `harness.run.compiled`; None for the plain
            one.

    Attributes:
        measured: the model as it is to be measured: with the averaged students, where there are some, and with the
            statistics that `train.renew_batch_norm` asks for. After `settle`.
        total: what `next_step` has added up of the losses of this rank's images, on the device: read once an epoch,
            since reading it in each step would make the host wait for the device.
    """

    def __init__(
        self, distiller: Distiller, spec: TrainSpec, device: Device, images: int, forward: Forward | None = None
    ) -> None:
        recipe, accelerator = spec.method.train, device.accelerator
        self.distiller, self.spec, self.device, self.forward = distiller, spec, device, forward or Distiller.loss
        self.steps_per_epoch = math.ceil(images / recipe.batch_size)
        if recipe.batch_norm == "sync":
            share_batch_norm(distiller.students)
        device.share(distiller.students)  # one seed, one start; but nothing else guards it under every strategy
        self.average = Average(distiller.students, recipe.ema) if recipe.ema else None
        self.plain = distiller.students if device.strategy == "ddp" else dense_copy(distiller.students)
        optimizers = make_optimizers(self.plain, recipe)
        for one in optimizers:
            read_rate_as(rate_type(device.place), one)
        self.schedules = [scheduler(one, recipe, recipe.epochs * self.steps_per_epoch) for one in optimizers]
        fit_to_recipe(accelerator, recipe, spec.process_batch_size)
        if accelerator.ddp_handler is not None:  # what comes after the last scale that counts has no gradient
            accelerator.ddp_handler.find_unused_parameters = set(spec.method.layers) != {1, 2, 3}
        if device.processes > 1:
            self.students, *self.optimizers = accelerator.prepare(self.plain, *optimizers)
        else:  # Accelerate's wrapper would only cast the students' maps to float32, which their loss does itself
            self.students, self.optimizers = self.plain, [accelerator.prepare(one) for one in optimizers]
        self.trained = with_students(distiller, self.students)
        # Without the wrappers around what is trained: in those every pass would be a meeting of all ranks.
        self.measured = with_students(distiller, self.average.module) if self.average else distiller
        self.total = torch.zeros((), device=device.place)
        self._batches: Iterator[tuple[TeacherFeatures, np.ndarray]] = iter(())
        self._settled, self._before_renewal = False, Kept()

    @property
    def _in_pieces(self) -> bool:
        """Whether DeepSpeed's engine has the parameters, and the model's own students are a copy of them."""
        return self.plain is not self.distiller.students

    def begin_epoch(self, features: TeacherFeatures, order: np.ndarray, epoch: int, done: int = 0) -> None:
        """The steps of an epoch come next, in training mode.

        Args:
            order: of the images, their positions in `features`.
            epoch: its number, from 1; done: steps of it that were done before.
        """
        self.train_on()
        size = self.spec.method.train.batch_size
        self._batches = ((features, order[at : at + size]) for at in range(done * size, len(order), size))

    def train_on(self) -> None:
        """In training mode, with the statistics of the training itself where they were renewed."""
        put_back(self._before_renewal)
        self._settled, self._before_renewal = False, Kept()
        self.students.train()

    def next_step(self) -> None:
        """Train on the epoch's next batch."""
        self.total += self.step(*next(self._batches))

    def step(self, features: TeacherFeatures, positions: np.ndarray) -> torch.Tensor:
        """Train on this rank's part of a global batch.

        Args:
            positions: of the batch's images in `features`.

        Returns:
            The summed loss of the batch's images, on the device: over the ranks its mean is that of the whole batch.
        """
        recipe, accelerator = self.spec.method.train, self.device.accelerator
        part, weight = part_of(positions, self.device.rank, self.device.processes)
        with section("batch"):
            images = to_images(features.pixels[index_of(part, self.device.place)])
            expected = features[part]
        with section("forward", len(part)), self.device.autocast():
            loss = self.forward(self.trained, images, expected) * weight
        with section("backward", len(part)):
            accelerator.backward(loss)
        with section("optimizer"):
            if recipe.clip:
                accelerator.clip_grad_norm_(self.students.parameters(), recipe.clip)
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                if schedule is not None:
                    schedule.step()
            if self.average:
                self.average.update(self.plain)
        return loss.detach() * len(positions)

    def settle(self, features: TeacherFeatures, chosen: np.ndarray) -> Distiller:
        """Bring what is measured to where the training is, equal on all ranks, and give it; once in an epoch, however
        often it is asked for.

        Args:
            chosen: positions in `features` that are trained on.
        """
        if self._settled:
            return self.measured
        if self._in_pieces:
            gather_parameters(self.plain, self.distiller.students)
        self.device.share(self.measured.students)
        recipe = self.spec.method.train
        if recipe.renew_batch_norm:
            batches = renewal_batches(chosen, recipe.batch_size)
            self._before_renewal = renew(self.measured.students, features, batches, self.device)
        self._settled = True
        return self.measured

    def parts(self, shards: Path) -> Parts:
        """What a checkpoint must hold of it; `shards`: the folder for what DeepSpeed's engine writes itself."""
        parts: dict[str, Stateful]
        if self._in_pieces:
            parts = {"engine": ShardedEngine(self.students, shards)}
        else:
            parts = {"students": self.plain}
            parts |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(self.optimizers)}
        schedules = {f"schedule {number}": schedule for number, schedule in enumerate(self.schedules)}
        parts |= {name: schedule for name, schedule in schedules.items() if schedule is not None}
        return parts | ({"average": self.average} if self.average else {})

    def finish(self, best: dict[str, torch.Tensor] | None) -> None:
        """Leave the model with the `best` students (None: with what is measured at the end) and in eval mode."""
        if best is None and self.average:
            best = self.average.module.state_dict()
        if best is not None:
            self.distiller.students.load_state_dict(best)
        self.distiller.students.eval()
        if self._in_pieces:
            self.device.accelerator.free_memory()  # the engine of DeepSpeed does not go by itself


def with_students(distiller: Distiller, prepared: torch.nn.Module) -> Distiller:
    """The same model seen through Accelerate's wrapper of its students."""
    view = copy.copy(distiller)
    view._modules = dict(distiller._modules) | {"students": prepared}
    return view


def make_optimizers(students: torch.nn.Module, recipe: Train) -> list[torch.optim.Optimizer]:
    """The recipe's optimizer over all students, or one for the encoder and one for the rest (`split`); fused (one
    kernel instead of one per tensor).
    """
    sgd = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "fused": True}
    adam = {"lr": recipe.lr, "betas": recipe.betas, "fused": True}
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(students.parameters(), lr=recipe.lr, **sgd)]
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(students.parameters(), weight_decay=recipe.weight_decay, **adam)]
    named = dict(students.named_parameters())
    encoder = {name for name in named if name.startswith("encoder.")}
    return [
        torch.optim.SGD([named[name] for name in named if name in encoder], lr=recipe.encoder_lr, **sgd),
        torch.optim.Adam([named[name] for name in named if name not in encoder], **adam),
    ]


def rate_type(place: torch.device) -> torch.dtype:
    """As what the optimizers read their rate, be it a number or a tensor: then both give the same bits."""
    return RATES.get(place.type, torch.float32)


def read_rate_as(kind: torch.dtype, optimizer: torch.optim.Optimizer) -> None:
    """Let its steps have the rate rounded to that type. Schedules and checkpoints keep the exact one."""
    if kind == torch.float64:  # as numbers are
        return
    exact: list[float] = []

    def before(*_: object) -> None:
        for group in optimizer.param_groups:
            exact.append(group["lr"])
            group["lr"] = torch.tensor(group["lr"], dtype=kind).item()

    def after(*_: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] = exact.pop(0)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def scheduler(optimizer: torch.optim.Optimizer, recipe: Train, steps: int) -> LRScheduler | None:
    """The recipe's schedule of the learning rate over `steps`; None for a constant one."""
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "one_cycle":
        peak = optimizer.param_groups[0]["lr"]
        # Momentum stays the recipe's: torch would by default cycle it, and with Adam beta1, between 0.85 and 0.95.
        return OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    return None


_Place = tuple[dict[str, torch.Tensor | None], str]  # of a module's tensor: where it is, whatever it is replaced by


class Average(AveragedModel):
    """The exponential moving average of the students, with the numbers of torch's own bit for bit; but no step waits
    for the device or launches kernels for each tensor.

    BatchNorm's statistics are averaged too: the averaged students see other activations than those that are trained.
    Counters, and what else is not floating, are copied (torch averages and truncates them; no number depends on it).

    Args:
        decay: `train.ema`.
    """

    def __init__(self, students: torch.nn.Module, decay: float) -> None:
        super().__init__(students, use_buffers=True)
        self.decay = decay
        self._pairs: list[tuple[_Place, _Place]] = []

    def update(self, students: torch.nn.Module) -> None:
        """Take in what a step made of the students: at each call the same ones, of modules as its own are."""
        self.blend(students, begun=bool(self.n_averaged))  # that number lies on the host
        self.n_averaged += 1

    @torch.no_grad()
    def blend(self, students: torch.nn.Module, begun: bool) -> None:
        """`update` but for the count. `begun`: there is an average already; else it is the students."""
        if not self._pairs:  # walking through all modules takes the host a millisecond
            self._pairs = list(zip(_places(self.module), _places(students), strict=True))
        averaged, copied = [], []
        for (own, name), (theirs, other) in self._pairs:
            is_averaged = begun and own[name].is_floating_point()
            (averaged if is_averaged else copied).append((own[name], theirs[other]))
        if averaged:
            torch._foreach_lerp_(*map(list, zip(*averaged, strict=True)), 1 - self.decay)
        if copied:
            torch._foreach_copy_(*map(list, zip(*copied, strict=True)))


def _places(module: torch.nn.Module) -> list[_Place]:
    """Of all parameters and buffers, each once."""
    tables = [table for each in module.modules() for table in (each._parameters, each._buffers)]
    found = {id(tensor): (table, name) for table in tables for name, tensor in table.items() if tensor is not None}
    return list(found.values())
