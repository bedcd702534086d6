"""The pass of the networks over a batch that is measured and not trained on: launched operation by operation or, by the
students that recorded steps train, as one piece.

A recorded pass reads a batch and writes discrepancies where these lie, with the numbers of a plain one. It is compared
before it is used; what goes wrong leaves the students as they were, and batches of that shape go by plain operations.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dskd.anomaly_map import Discrepancies
from dskd.distiller import Distiller, Students, needs_features
from harness.run.batches import to_images
from harness.run.compiled import put_state, state_of
from harness.run.device import Device
from harness.run.memory import free_memory
from harness.run.recorder import Recorder, Step, equal, reason_of, require_in_place
from harness.run.sections import section

Autocast = Callable[[], AbstractContextManager[Any]]
# Batches of a shape that go by before its pass is recorded, which takes about as many passes to do, compare and record
# (our choice): the one evaluation after a training is over by then, the maps of every epoch are not.
UNRECORDED = 8
log = logging.getLogger(__name__)


class Pass:
    """The pass over batches of one shape, by students in eval mode.

    Args:
        given: a batch, uint8 (B, H, W, 3), and the teacher's scales of it (B, C_k, h_k, w_k), if they are kept.
        together: as of `Distiller.discrepancies`.

    Attributes:
        given, found: the batch and its discrepancies, at one place each; the next batch overwrites both.
    """

    def __init__(self, model: Distiller, autocast: Autocast, given: Sequence[Tensor], together: bool) -> None:
        self.model, self.autocast, self.together = model, autocast, together
        self.given = [each.clone() for each in given]
        self.found: Discrepancies = {}
        self.held: dict[str, Tensor] = {}

    def plain(self, given: Sequence[Tensor]) -> Discrepancies:
        pixels, *expected = given
        with torch.inference_mode(), self.autocast():  # within the recording: its casts of weights must not outlive it
            return self.model.discrepancies(to_images(pixels), expected or None, together=self.together)

    @torch.inference_mode()
    def step(self) -> None:
        """What is recorded. What it gives lies outside of it: the memory within is used by other recordings too."""
        _copy(_listed(self.found), _listed(self.plain(self.given)))

    def record(self, recorder: Recorder) -> str:
        """Why the pass cannot be used, empty if it can. Students and generators of random numbers end as they were."""
        students, place = self.model.students, self.given[0].device
        start = copy.deepcopy(state_of(students))
        try:
            with torch.random.fork_rng([place] if place.type == "cuda" else []), section("capture"):
                self._record(recorder)
        except Exception as error:  # whatever stands in a recording's way, no map needs it
            return reason_of(error)
        finally:
            put_state(students, start)
        return ""

    def _record(self, recorder: Recorder) -> None:
        """Raises RuntimeError where what was recorded is another pass."""
        own = [each.clone() for each in self.given]
        batches = [_other(own), own]
        plain = [self.plain(batch) for batch in batches]
        self.found = {name: [scale.clone() for scale in scales] for name, scales in plain[0].items()}
        recorder.rehearse(self.step)
        self.held = dict(self.used())
        self.replay: Step = recorder.capture(self.step)
        for batch, expected in zip(batches, plain, strict=True):
            found = self(batch)
            other = [name for name in expected if not all(map(equal, found[name], expected[name]))]
            if other:
                raise RuntimeError(f"discrepancies are not those of a plain pass: {', '.join(other)}")
        self.check()

    def __call__(self, given: Sequence[Tensor]) -> Discrepancies:
        """The discrepancies of a batch, which the next one overwrites: nobody may keep them."""
        _copy(self.given, given)
        self.replay()
        return self.found

    def check(self) -> None:
        """Raises RuntimeError for a tensor that is not where it was when the pass was recorded."""
        require_in_place(self.held, self.used())

    def used(self) -> Iterator[tuple[str, Tensor]]:
        """All that a pass reads or writes, by name."""
        for of, module in (("students", self.model.students), ("teacher", self.model.teacher)):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{of}.{name}", tensor.detach()
        for of, tensors in (("given", self.given), ("found", _listed(self.found))):
            yield from ((f"{of} {number}", tensor) for number, tensor in enumerate(tensors))


class Passes:
    """The recorded passes of the students that one shape's recorded steps train, by the shape of a batch.

    Args:
        models: with the students that are trained, and with their moving average.
    """

    def __init__(self, models: Sequence[Distiller], autocast: Autocast, recorder: Recorder) -> None:
        self.models, self.autocast, self.recorder = models, autocast, recorder
        self.kept: dict[Hashable, Pass | str] = {}
        self.seen: Counter[Hashable] = Counter()

    def has(self, distiller: Distiller) -> bool:
        return any(one.students is distiller.students and one.teacher is distiller.teacher for one in self.models)

    @torch.inference_mode(False)  # CUDA's generators keep tensors from a capture on, which a step's replay writes
    def of(self, distiller: Distiller, given: Sequence[Tensor], together: bool) -> Pass | str:
        """The pass for such a batch; why there is none, empty where it is not worth it yet."""
        key = id(distiller.students), tuple(each.shape for each in given), together
        if (found := self.kept.get(key)) is not None:
            return found
        self.seen[key] += 1
        if self.seen[key] <= UNRECORDED:
            return ""
        (model,) = (one for one in self.models if one.students is distiller.students)
        made: Pass | str = Pass(model, self.autocast, given, together)
        if failure := made.record(self.recorder):
            made = _given_up(failure)
        self.kept[key] = made
        return made

    def check(self, students: Students) -> None:
        """What knows the students by places where they are not any more is not used again."""
        for key, one in self.kept.items():
            if isinstance(one, Pass) and one.model.students is students:
                try:
                    one.check()
                except RuntimeError as error:
                    self.kept[key] = _given_up(reason_of(error))

    def forget(self) -> None:
        """Give their memory back."""
        self.kept.clear()
        self.seen.clear()
        free_memory()


class Look:
    """How one piece of work passes batches through the networks: recorded where that can be, else plainly.

    Args:
        passes_of: the recorded passes of a model's students, None where there are none.
    """

    def __init__(self, device: Device, passes_of: Callable[[Distiller], Passes | None] = lambda _: None) -> None:
        self.device, self.passes_of = device, passes_of
        self.replayed, self.failure = 0, ""

    def begin(self, distiller: Distiller) -> None:
        """Batches of a set of images come next: the students are in eval mode from here."""
        distiller.students.eval()
        if passes := self.passes_of(distiller):
            passes.check(distiller.students)

    @torch.inference_mode()
    def __call__(
        self, distiller: Distiller, pixels: Tensor, expected: Sequence[Tensor] = (), together: bool | None = None
    ) -> Discrepancies:
        """The discrepancies of a batch: for use before the next one, which may overwrite them.

        Args:
            pixels: uint8 (B, H, W, 3); expected: the teacher's scales of it, where they are known.
            together: as of `Distiller.discrepancies`.
        """
        given = [pixels, *expected]
        together = needs_features(distiller.method.map) if together is None else together
        passes = self.passes_of(distiller)
        found = passes.of(distiller, given, together) if passes else ""
        if isinstance(found, Pass):
            self.replayed += 1
            return found(given)
        self.failure = self.failure or found
        with self.device.autocast():
            return distiller.discrepancies(to_images(pixels), list(expected) or None, together=together)

    def plainly(self, distiller: Distiller) -> None:
        """From now on, since there is too little memory: what recorded passes have of it is given back."""
        if passes := self.passes_of(distiller):
            passes.forget()
        self.passes_of = lambda _: None

    def facts(self) -> dict[str, Any]:
        """For a record: how many batches went through recorded passes, and why others of them could not."""
        replayed = {"graphed_passes": self.replayed} if self.replayed else {}
        return replayed | ({"pass_failure": self.failure} if self.failure else {})


def _given_up(why: str) -> str:
    free_memory()
    log.warning("passes over images cannot be recorded, they are launched one by one: %s", why)
    return why


def _other(batch: Sequence[Tensor]) -> list[Tensor]:
    """Of the same shapes, with other values everywhere."""
    pixels, *expected = batch
    return [pixels.bitwise_not(), *(scale.neg() for scale in expected)]


def _listed(found: Discrepancies) -> list[Tensor]:
    return [scale for scales in found.values() for scale in scales]


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for own, each in zip(into, values, strict=True):
        own.copy_(each, non_blocking=True)
