"""Live progress of a grid: the whole of it, the run that is on, and what just ended."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from harness.launch.job import Job
from harness.launch.shards import title

# How a run's time divides over its phases, roughly: enough for a bar that never runs backwards.
_SHARES = {
    "data": (0.0, 0.02),
    "teacher": (0.02, 0.05),
    "train": (0.05, 0.9),
    "evaluate": (0.9, 1.0),
    "bench": (0.0, 1.0),
}
LINE_EVERY_S = 60  # in a log file: at least that long between two lines of a run's progress


class Screen:
    """Hears the supervisor's events. On a terminal a bar for the grid and one for each run that is on; elsewhere one
    line for each piece of work that ended.
    """

    def __init__(self, console: Console, jobs: Sequence[tuple[Job, float]]) -> None:
        self.console = console
        self.costs = {job.spec.id: seconds for job, seconds in jobs}
        self.total_s = max(sum(self.costs.values()), 1e-9)
        self.failures = self.finished = 0
        self.finished_s = 0.0
        self.running: dict[str, _Running] = {}
        self.started = self.last_line = time.monotonic()
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%")]
        columns += [TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.grid_task = self.progress.add_task("grid", total=1.0, note="starting workers")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_event(self, job: Job, event: dict[str, Any]) -> None:
        """Called by `supervise`."""
        handle = getattr(self, f"_on_{event['event']}", None)
        if handle is not None:
            handle(job, event)

    def _on_phase(self, job: Job, event: dict[str, Any]) -> None:
        run = self.running.get(job.spec.id)
        if run is None:
            task = self.progress.add_task(title(job.spec), total=1.0, note="")
            run = self.running[job.spec.id] = _Running(task, self.costs[job.spec.id])
        run.shares = _SHARES[event["phase"]]
        self._show(job, 0.0, event["phase"])

    def _on_step(self, job: Job, event: dict[str, Any]) -> None:
        self._show(job, event["done"] / event["total"])

    def _on_epoch(self, job: Job, event: dict[str, Any]) -> None:
        note = f"epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.4g}  {event['images_per_s']:.0f} img/s"
        self._show(job, event["epoch"] / event["epochs"], note)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.console.print(f"  {title(job.spec)}  {note}  {self._eta()}")

    def _on_record(self, job: Job, event: dict[str, Any]) -> None:
        shown = "  ".join(f"{_NAMES[key]} {_number(key, value)}" for key, value in event["result"].items())
        self.console.print(f"[green]✓[/] {event['kind']:8} {title(job.spec)}  {shown}  [dim]{event['wall_s']:.1f} s[/]")

    def _on_failed(self, job: Job, event: dict[str, Any]) -> None:
        if event["reason"] == "interrupted":
            self.console.print(f"[yellow]◼ interrupted[/] {title(job.spec)}  {event['message']}  [dim]{event['id']}[/]")
            return
        self.failures += 1
        self.console.print(f"[red]✗ {event['reason']}[/] {title(job.spec)}  {event['message']}  [dim]{event['id']}[/]")

    def _on_retrying(self, job: Job, event: dict[str, Any]) -> None:
        text = f"[yellow]↻ {event['reason']}[/] {title(job.spec)}  {event['message']}  will be tried again"
        self.console.print(f"{text}  [dim]{event['id']}[/]")
        self._end(job)

    def _on_stopping(self, job: Job, event: dict[str, Any]) -> None:
        self._show(job, 1.0, "stopping (Ctrl-C again stops at once)")

    def _on_finished(self, job: Job, event: dict[str, Any]) -> None:
        self.finished += 1
        self.finished_s += self.costs[job.spec.id]
        self._end(job)
        self._show_grid()
        if not self.console.is_terminal:
            self.console.print(f"  {self.finished}/{len(self.costs)} runs  {self._eta()}")

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
        text = f"{self.finished}/{len(self.costs)} runs  {self._eta()}"
        self.progress.update(self.grid_task, completed=self._done_share(), note=text)

    def _done_share(self) -> float:
        current_s = sum(run.share * run.cost_s for run in self.running.values())
        return min(1.0, (self.finished_s + current_s) / self.total_s)

    def _eta(self) -> str:
        done = self._done_share()
        if done >= 1 or done < 0.01:
            return ""
        left = (time.monotonic() - self.started) * (1 - done) / done
        return f"about {duration(left)} left"


@dataclass
class _Running:
    task: TaskID
    cost_s: float
    shares: tuple[float, float] = (0.0, 1.0)
    share: float = 0.0


_NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "loss_last": "loss", "images_per_s": "img/s"}


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{100 * value:.1f}" if key.endswith("auroc") else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
