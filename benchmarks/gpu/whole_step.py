"""A prototype: a whole training step as one CUDA graph of the plain kernels, against steps launched one by one.

A step gathers its batch by a counter on the device from a table of positions, normalises, goes forward and backward,
updates the students by a fused optimizer whose rate is a tensor, and notes its loss. There are two graphs, one for
whole batches and one for the incomplete last one, which share a pool of memory. Autocast is entered within the capture.
Losses, weights, buffers and the optimizer's state must be those of plain steps bit for bit.
"""

from typing import Any

import numpy as np
import torch
from scene import Pace, Scene, pace
from sheet import Sheet, figures
from torch import Tensor

from harness.run.batches import to_images
from harness.run.learner import make_optimizers

WARM_UP = 3  # steps on a side stream before the capture


def run(sheet: Sheet) -> None:
    """The block."""
    small = sheet.small
    first = [("stfpm", 32, "fp32"), ("dskd", 32, "fp32")] if small else [("stfpm", 64, "bf16"), ("dskd", 64, "bf16")]
    bits(sheet, first)
    best = {}
    for method, side in [("stfpm", 32)] if small else [("dskd", 256), ("stfpm", 256), ("dskd", 128), ("stfpm", 128)]:
        name = f"rate of {method} {side}"
        if sheet.enough(name, 8):
            with sheet.trying(name):
                scene = Scene(sheet.kind, method, side, 16 if small else 1024, 8 if small else None)
                best[f"{method} {side}"] = rate(sheet, scene, 16 if small else 200)
                sheet.say(", ".join(f"{key}: {figures(one.images_per_s)} images/s" for key, one in best.items()))
    bits(sheet, [] if small else [("stfpm", 128, "fp32"), ("dskd", 128, "bf16")])


def bits(sheet: Sheet, settings: list[tuple[str, int, str]]) -> None:
    for method, side, precision in settings:
        name = f"{method} {side} {precision}"
        if sheet.enough(name, 14 if method == "dskd" else 8):
            with sheet.trying(name):
                same_bits(sheet, Scene(sheet.kind, method, side, 24, 16, precision), 6 if sheet.small else 200)


class Whole:
    """A training whose step is one call without arguments.

    Args:
        tables: positions (steps, n) of whole batches and of incomplete ones, int64 on the device.
        capturable: the optimizer for graphs; False: the one that the harness uses today, for plain steps.
    """

    def __init__(self, scene: Scene, tables: list[Tensor], capturable: bool = True) -> None:
        self.scene, self.tables, self.model = scene, tables, scene.model()
        self.features = scene.features().scales
        recipe, students = scene.config.train, self.model.students
        self.optimizers = optimizers(students, scene) if capturable else make_optimizers(students, recipe)
        self.counters = [torch.zeros(1, dtype=torch.int64, device=scene.place) for _ in tables]
        self.losses = [torch.zeros(len(table), device=scene.place) for table in tables]
        self.total = torch.zeros((), device=scene.place)

    def step(self, which: int) -> None:
        """Of the table `which`, the next row. Nothing here waits for the device or asks it."""
        table, counter, scene = self.tables[which], self.counters[which], self.scene
        index = table.index_select(0, counter)[0]
        images = to_images(scene.pixels.index_select(0, index))
        expected = [scale.index_select(0, index).permute(0, 3, 1, 2) for scale in self.features]
        with scene.device.autocast():
            loss = self.model.loss(images, expected)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.total += loss.detach() * table.shape[1]
        self.losses[which].index_copy_(0, counter, loss.detach().view(1))
        counter += 1

    def capture(self) -> list[torch.cuda.CUDAGraph]:
        """A graph a table; the training is at its start afterwards."""
        start = self.snapshot()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for which in range(len(self.tables)):
                for _ in range(WARM_UP):
                    self.step(which)
                self.counters[which].zero_()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.restore(start)
        graphs, pool = [], torch.cuda.graph_pool_handle()
        for which in range(len(self.tables)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.step(which)
            graphs.append(graph)
        torch.cuda.synchronize()
        return graphs

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.students.state_dict().items()}

    def restore(self, start: dict[str, Tensor]) -> None:
        """Everything that a step changes, in place: a graph knows it by its address. The optimizers' states start at
        zero; for SGD that is a first step too.
        """
        with torch.no_grad():
            for name, value in self.model.students.state_dict().items():
                value.copy_(start[name])
            changed = [*self.losses, *self.counters, self.total]
            for optimizer in self.optimizers:
                changed += [one for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one)]
            for one in changed:
                one.zero_()

    def state(self) -> dict[str, Tensor]:
        """All that a step changes."""
        found = {**self.model.students.state_dict(), "total": self.total}
        found |= {f"losses {number}": one for number, one in enumerate(self.losses)}
        for number, optimizer in enumerate(self.optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                found |= {
                    f"optimizer {number} {key} {name}": one for name, one in state.items() if torch.is_tensor(one)
                }
        return {name: one.detach().clone() for name, one in found.items()}


def optimizers(students: torch.nn.Module, scene: Scene) -> list[torch.optim.Optimizer]:
    """The recipe's, in a form that a graph can hold: the rate is a tensor on the device, counts of steps too."""
    recipe = scene.config.train
    lr, rest = torch.tensor(recipe.lr, device=scene.place), {"weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(students.parameters(), lr=lr, momentum=recipe.momentum, **rest)]
    capturable = {"capturable": scene.place.type == "cuda"}
    return [torch.optim.Adam(students.parameters(), lr=lr, betas=recipe.betas, **rest, **capturable)]


def tables_of(scene: Scene, steps: int) -> list[Tensor]:
    """Of so many steps, whole batches and (where the images do not divide) as many incomplete ones."""
    draw, batch = np.random.default_rng(0), scene.batch
    orders = [draw.permutation(scene.images) for _ in range(steps)]
    rest = scene.images % batch
    parts = [np.stack([order[:batch] for order in orders])]
    parts += [np.stack([order[-rest:] for order in orders])] if rest else []
    return [torch.from_numpy(part).to(scene.place) for part in parts]


def turns(tables: list[Tensor]) -> list[int]:
    """Which table is next: one whole batch, then one incomplete one, and so on."""
    return [which for _ in range(len(tables[0])) for which in range(len(tables))]


def plain_steps(scene: Scene, tables: list[Tensor], capturable: bool) -> dict[str, Tensor]:
    whole = Whole(scene, tables, capturable)
    for which in turns(tables):
        whole.step(which)
    return whole.state()


def same_bits(sheet: Sheet, scene: Scene, steps: int) -> None:
    """Graphed steps against plain ones, twice in the same graphs; and plain ones with today's optimizer."""
    tables, name = tables_of(scene, steps // 2), f"{scene.method} {scene.side} {scene.precision}"
    expected = plain_steps(scene, tables, True)
    repeated = differing(plain_steps(scene, tables, True), expected)
    sheet.check(f"{name}: plain steps are repeatable", not repeated, listed(repeated))
    today = plain_steps(scene, tables, False)
    shared = [key for key in expected if key in today]
    equal = sum(torch.equal(today[key], expected[key]) for key in shared)
    sheet.row(
        "rate as a tensor against today's optimizer",
        setting=name,
        steps=steps,
        loss_apart=figures(max(relative(today[key], expected[key]) for key in shared if "losses" in key), 2),
        last_loss=[round(one["losses 0"][-1].item(), 6) for one in (today, expected)],
        tensors_equal=f"{equal}/{len(shared)}",
    )
    if scene.place.type != "cuda":
        return
    whole = Whole(scene, tables)
    start = whole.snapshot()
    graphs = whole.capture()
    for which in turns(tables):
        graphs[which].replay()
    found = differing(whole.state(), expected)
    sheet.check(f"{name}: {steps} graphed steps equal plain ones bit for bit", not found, listed(found))
    whole.restore(start)
    for which in turns(tables):
        graphs[which].replay()
    found = differing(whole.state(), expected)
    sheet.check(f"{name}: so does a second run in the same graphs", not found, listed(found))


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Which are not equal bit for bit, with their relative difference; NaN equals nothing."""
    return {
        key: relative(found[key], expected[key]) if key in found else float("inf")
        for key in expected
        if key not in found or not torch.equal(found[key], expected[key])
    }


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def listed(found: dict[str, float]) -> str:
    worst = sorted(found, key=found.get, reverse=True)[:3]
    return f"{len(found)} differ: {', '.join(f'{key} {figures(found[key], 2)}' for key in worst)}" if found else ""


def rate(sheet: Sheet, scene: Scene, steps: int) -> Pace:
    """The paces of plain and graphed steps, and the harness's own."""
    tables = tables_of(scene, steps)
    found: dict[str, Pace] = {"harness": harness_pace(scene, steps // 4)}
    plain = Whole(scene, tables)
    few = min(10, steps // 4)
    pace(scene, lambda: plain.step(0), few, 0)
    count = steps // 2 - few
    found["plain, rate as a tensor"] = pace(scene, lambda: plain.step(0), count, count * scene.batch)
    if scene.place.type == "cuda":
        del plain
        whole = Whole(scene, tables)
        (graph,) = whole.capture()
        pace(scene, graph.replay, few, 0)
        count = steps - few
        found["one graph"] = pace(scene, graph.replay, count, count * scene.batch)
    for name, one in found.items():
        setting = f"{scene.method} {scene.side}, batch {scene.batch}"
        sheet.row("pace", setting=setting, steps=name, **vars(one))
    return found.get("one graph", found["harness"])


def harness_pace(scene: Scene, steps: int) -> Pace:
    learner, features, batches = scene.learner(), scene.features(), scene.batches()

    def step() -> Any:
        return learner.step(features, next(batches))

    pace(scene, step, min(10, steps), 0)
    return pace(scene, step, steps, steps * scene.batch)
