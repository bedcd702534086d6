"""Live progress of a grid: the whole of it, the run that is on, and what just ended; and the same lines in a file."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness import events
from harness.disturbance import SIGN
from harness.environment import utc_now
from harness.job import Job, name_of
from harness.launch.schedule import duration
from harness.naming import counted
from harness.text import one_line

# How a run's time divides over its phases, roughly: enough for a bar that never runs backwards.
_SHARES = {
    "data": (0.0, 0.02),
    "teacher": (0.02, 0.05),
    "train": (0.05, 0.9),
    "evaluate": (0.9, 1.0),
    "bench": (0.0, 1.0),
}
RECENT_S = 120.0  # the time left is told by the pace of at least so many seconds
LINE_EVERY_S = 60  # in a log file: at least that long between two lines of a run's progress


class Screen:
    """Hears the supervisor's events. On a terminal a bar for the grid and one for each run that is on; elsewhere one
    line for each piece of work that ended.

    Args:
        log: where its lines go too, with the time: whoever lost the terminal finds them there.
    """

    def __init__(self, console: Console, jobs: Sequence[tuple[Job, float]], log: Path | None = None) -> None:
        self.console = console
        self.log = _open(log)
        self.costs = {job.spec.id: seconds for job, seconds in jobs}
        self.total_s = max(sum(self.costs.values()), 1e-9)
        self.kinds = {job.spec.id: job.kind for job, _ in jobs}
        self.finished: set[str] = set()
        self.failures = 0
        self.finished_s = 0.0
        self.running: dict[str, _Running] = {}
        self.last_line, self.pace = time.monotonic(), Pace()
        columns = [_text("{task.description}"), BarColumn(bar_width=24), _text("{task.percentage:>3.0f}%")]
        columns += [TimeElapsedColumn(), _text("{task.fields[note]}")]
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.grid_task = self.progress.add_task("grid", total=1.0, note="starting workers")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, *parts: str | tuple[str, str]) -> None:
        """One line, of texts and of texts with a style."""
        line = Text.assemble(
            *(one_line(part) if isinstance(part, str) else (one_line(part[0]), part[1]) for part in parts)
        )
        self.console.print(line, soft_wrap=True)
        if self.log is not None:
            with suppress(OSError):  # a disk that is lost is the supervisor's to tell
                self.log.write(f"{utc_now()} {line.plain}\n")

    def on_event(self, job: Job, event: events.Event) -> None:
        """Called by `supervise`."""
        match event:
            case events.Phase():
                self._begin(job, event)
            case events.Step(done, total):
                self._show(job, done / total)
            case events.Epoch():
                self._show_epoch(job, event)
            case events.Noted(message):
                self._show(job, 0.0, message)
                self.say(f"  {name_of(job)}  {message}")
            case events.Recorded(kind, run_id, wall_s, result):
                shown = "  ".join(
                    f"{name} {_number(key, result[key])}" for key, name in _NAMES.items() if key in result
                )
                mark = [(f"{SIGN} {result['disturbed']}  ", "yellow")] if "disturbed" in result else []
                self.say(
                    ("✓", "green"), f" {kind:8} {name_of(job, run_id)}  {shown}  ", *mark, (f"{wall_s:.1f} s", "dim")
                )
            case events.Failed(run_id, reason, message):
                self.failures += reason != "interrupted"
                sign = ("◼ interrupted", "yellow") if reason == "interrupted" else (f"✗ {reason}", "red")
                self.say(sign, f" {name_of(job, run_id)}  {message}  ", (run_id, "dim"))
            case events.Retrying(run_id, reason, message):
                text = f" {name_of(job, run_id)}  {message}  will be tried again  "
                self.say((f"↻ {reason}", "yellow"), text, (run_id, "dim"))
                self._end(job)
            case events.Waiting(message):
                self.say("  waiting for another supervisor: ", message)
            case events.GivenUp(message):
                self.say(("✗ ", "red"), message)
            case events.Stopping():
                self._show(job, 1.0, "stopping (Ctrl-C again stops at once)")
            case events.Finished():
                self._finish(job)

    def _begin(self, job: Job, phase: events.Phase) -> None:
        run = self.running.get(job.spec.id)
        if run is None:
            task = self.progress.add_task(name_of(job), total=1.0, note="")
            run = self.running[job.spec.id] = _Running(task, self.costs[job.spec.id])
        low, high = _SHARES[phase.phase]
        step = (high - low) / phase.parts
        run.shares = low + (phase.part - 1) * step, low + phase.part * step
        self._show(job, 0.0, phase.shown)
        if phase.parts > 1 and not self.console.is_terminal:
            self.say(f"  {name_of(job)}  {phase.shown}  {self._eta()}")

    def _show_epoch(self, job: Job, event: events.Epoch) -> None:
        note = f"epoch {event.epoch}/{event.epochs}  loss {event.loss:.4g}  {event.images_per_s:.0f} img/s"
        self._show(job, event.epoch / event.epochs, note)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.say(f"  {name_of(job)}  {note}  {self._eta()}")

    def _finish(self, job: Job) -> None:
        self.finished.add(job.spec.id)
        self.finished_s += self.costs[job.spec.id]
        self._end(job)
        self._show_grid()
        if not self.console.is_terminal:
            self.say(f"  {self._count()}  {self._eta()}")

    def _end(self, job: Job) -> None:
        run = self.running.pop(job.spec.id, None)
        if run is not None:
            self.progress.remove_task(run.task)

    def _show(self, job: Job, share: float, note: str | None = None) -> None:
        run = self.running.get(job.spec.id)
        if run is None:
            return
        low, high = run.shares
        run.share = low + (high - low) * share
        self.progress.update(run.task, completed=run.share, **({} if note is None else {"note": note}))
        self._show_grid()

    def _show_grid(self) -> None:
        text = f"{self._count()}  {self._eta()}"
        self.progress.update(self.grid_task, completed=self._done_share(), note=text)

    def _count(self) -> str:
        """`2 of 3 runs, 0 of 1 measurement`, of those that were to do when it began."""
        parts = [
            f"{sum(self.kinds[run_id] == kind for run_id in self.finished)} of {counted(**{word: total})}"
            for kind, word in (("train", "runs"), ("bench", "measurements"))
            if (total := sum(one == kind for one in self.kinds.values()))
        ]
        return ", ".join(parts)

    def _done_share(self) -> float:
        current_s = sum(run.share * run.cost_s for run in self.running.values())
        return min(1.0, (self.finished_s + current_s) / self.total_s)

    def _eta(self) -> str:
        done = self._done_share()
        left = self.pace.left_s(done, time.monotonic())
        return f"about {duration(left)} left" if left and done >= 0.01 else ""


class Pace:
    """How fast a whole is being done of late: a machine that others keep busy for a while is slower for that while."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seen = deque([(self.began, 0.0)])  # (when, the share that was done)

    def left_s(self, done: float, now: float) -> float | None:
        """Seconds until the whole is done, at the pace of the last RECENT_S or, if that is longer, the last third of
        the time; None where nothing tells.

        Args:
            done: the share that is done; now: seconds of the monotonic clock.
        """
        if now - self.seen[-1][0] >= 1:
            self.seen.append((now, done))
        recent = max(RECENT_S, (now - self.began) / 3)
        while len(self.seen) > 1 and now - self.seen[1][0] >= recent:
            self.seen.popleft()
        at, share = self.seen[0]
        return (now - at) * (1 - done) / (done - share) if done > share else None


@dataclass
class _Running:
    task: TaskID
    cost_s: float
    shares: tuple[float, float] = (0.0, 1.0)
    share: float = 0.0


def _text(form: str) -> TextColumn:
    return TextColumn(form, markup=False)


def _open(log: Path | None) -> TextIO | None:
    """None where it cannot be written: then the lines are on the console alone."""
    if log is None:
        return None
    with suppress(OSError):
        log.parent.mkdir(exist_ok=True)
        return log.open("a", buffering=1, encoding="utf-8")
    return None


_NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "loss_last": "loss", "images_per_s": "img/s"}


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{100 * value:.1f}" if key.endswith("auroc") else f"{value:.4g}"
