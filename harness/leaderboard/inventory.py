"""Tables of what there is rather than who leads: speed and cost of models, single runs, machines, inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dskd.config import flat
from harness.disturbance import disturbance
from harness.leaderboard.evidence import labels, trainings
from harness.leaderboard.frame import Found, metric_title, model_key, names_in
from harness.leaderboard.table import Board, Cell, Column, Table
from harness.records import Record

MOST_RUNS = 2000  # lines of the table of runs; the folders have all
# Of a bench record, dotted: a column is shown where any record has it.
BENCH = [
    Column("images_per_s", "images/s", "speed", ("disturbed",), best=True),
    Column("disturbed", "disturbed by", "text"),
    Column("best_batch_size", "at batch", "number"),
    Column("sweep", "images/s by batch", "text"),
    Column("single_stream.latency_p50_ms", "batch 1\np50 [ms]", "number"),
    Column("single_stream.latency_p90_ms", "p90", "number"),
    Column("single_stream.latency_p95_ms", "p95", "number"),
    Column("single_stream.latency_p99_ms", "p99", "number"),
    Column("single_stream.latency_std_ms", "SD", "number"),
    Column("single_stream.stages.model_ms", "model\n[ms]", "number"),
    Column("single_stream.stages.map_score_ms", "+ map,\nscore", "number"),
    Column("single_stream.stages.smoothing_ms", "+ smooth-\ning", "number"),
    Column("single_stream.stages.transfer_ms", "+ copies", "number"),
    Column("single_stream.stages.decode_ms", "+ decode", "number"),
    Column("gmac", "GMACs", "number"),
    Column("parameters_mio", "parameters\n[10⁶]", "number"),
    Column("peak_device_memory_mib", "device\nmemory [MiB]", "number"),
    Column("peak_host_memory_mib", "host\nmemory [MiB]", "number"),
    Column("energy_per_1000_images_j", "energy [J/\n1000 images]", "number"),
]
COST = [
    Column("images_per_s", "training\n[images/s]", "speed"),
    Column("train_s", "seconds\nto finish", "number"),
    Column("epochs", "epochs", "number"),
    Column("parameters_mio", "trained\nparameters\n[10⁶]", "number"),
    Column("peak_device_memory_mib", "device\nmemory [MiB]", "number"),
    Column("peak_host_memory_mib", "host\nmemory [MiB]", "number"),
    Column("runs", "trainings", "number"),
]


def speed(board: Board) -> Table:
    """Throughput of the board's models: every measurement by the newest protocol among them."""
    names = labels(list(board.parts()))
    models = {model: names[row] for model, row in zip(board.lines["model"], board.lines["row"], strict=True)}
    rows = []
    benches = [bench for bench in board.found.benches if model_key(bench.spec, bench.result) in models]
    newest = max((bench.result.get("protocol", 1) for bench in benches), default=1)
    for bench in benches:
        if bench.result.get("protocol", 1) == newest:
            name = models[model_key(bench.spec, bench.result)]
            result = bench.result
            total = sum(result.get(f"parameters_{part}", 0) for part in ("teacher", "students"))
            place = result.get("device", bench.spec["device"])
            if bench.spec["device"] == "cpu" or result.get("device_type") == "cpu":
                place += f", {bench.spec['threads']} threads"
            sweep = [f"{one['batch_size']}: {one['images_per_s']:,.1f}" for one in result.get("offline", [])]
            values = {**flat(result), "parameters_mio": total / 1e6 or None, "sweep": " · ".join(sweep) or None}
            values["disturbed"] = why = disturbance(result) or None
            how = result.get("precision", bench.spec["precision"]) + (", compiled" if bench.spec.get("compile") else "")
            cells = _cells(BENCH, values)
            cells["images_per_s"] = replace(cells["images_per_s"], disturbed=why)
            rows.append(((name, place, how), cells))
    rows.sort(key=lambda row: (row[0][1], "disturbed" in row[1], -float(row[1]["images_per_s"].value or 0)))
    notes = ["memory is the peak of the process; each interval in ms holds those before it (docs/protocol.md)"]
    return Table(
        "speed", "Throughput", ["model", "device", "precision"], _known(BENCH, rows), rows, notes if rows else []
    )


def cost(board: Board) -> Table:
    """Mean over the trainings of each row and data set."""
    names = labels(list(board.parts()))
    found = trainings(board)
    rows = []
    for (row, dataset), part in board.lines.groupby(["row", "dataset"], sort=False):
        results = [found[run_id].result for run_id in part["id"] if run_id in found]
        if results:
            values = {column.key: _mean(result.get(column.key) for result in results) for column in COST}
            values["parameters_mio"] = (_mean(r.get("parameters_students") for r in results) or 0) / 1e6 or None
            values["runs"] = len(results)
            rows.append(((names[row], str(dataset)), _cells(COST, values)))
    return Table("cost", "What a training costs", ["model", "data set"], _known(COST, rows), rows)


def runs(board: Board) -> Table:
    """One line for each evaluation, MOST_RUNS at most."""
    names = labels(list(board.parts()))
    found = trainings(board)
    started = {record.id: record.started_at for record in board.found.evaluations}
    columns = [Column(metric, metric_title(metric), "share") for metric in board.metrics]
    columns += [
        Column("train_s", "training [s]", "number"),
        Column("state", "state", "text"),
        Column("at", "at", "text"),
    ]
    rows = []
    for line in board.lines.head(MOST_RUNS).to_dict("records"):
        training = found.get(line["id"])
        cells = {metric: Cell(line[metric]) for metric in board.metrics if not np.isnan(line[metric])}
        cells["train_s"] = Cell(training.result.get("train_s") if training else None)
        cells["state"] = Cell("collapsed" if line["degenerate"] else "done", degenerate=0)
        cells["at"] = Cell(started[line["id"]])
        key = line["id"], names[line["row"]], line["dataset"], line["category"], str(line["seed"])
        rows.append((key, cells))
    return Table("runs", "Runs", ["run", "model", "data set", "category", "seed"], columns, rows)


def failures(found: Found) -> Table:
    """The last attempt of every run that has no record."""
    rows = []
    known = names_in(found) if found.failures else {}
    for failure in found.failures:
        about = {"reason": failure.reason, "message": failure.message, "at": failure.started_at}
        cells = {key: Cell(value) for key, value in about.items()}
        rows.append(((failure.id, f"{failure.kind} {known[failure.id]}", str(failure.attempt)), cells))
    columns = [Column(key, key, "text") for key in ("reason", "message", "at")]
    return Table("failures", "Failures", ["run", "what", "attempt"], columns, rows)


def environments(found: Found, lines: pd.DataFrame) -> Table:
    """Machines, versions and commits, and how many evaluations came from each."""
    ids = set(lines["id"])
    counts: dict[tuple[str, ...], list[str]] = {}
    for record in found.evaluations:
        if record.id in ids:
            counts.setdefault(_environment(record), []).append(record.started_at)
    rows = []
    for key, times in counts.items():
        cells = {"runs": Cell(len(times)), "from": Cell(min(times)[:16]), "to": Cell(max(times)[:16])}
        rows.append((key, cells))
    columns = [Column("runs", "evaluations", "number"), Column("from", "from", "text"), Column("to", "to", "text")]
    return Table("environments", "Environments", ["commit", "device", "system", "packages"], columns, rows)


def _environment(record: Record) -> tuple[str, str, str, str]:
    about, result = record.environment, record.result
    packages = {"python": about.get("python", "?"), **about.get("packages", {})}
    device = f"{result.get('device', '?')}, {result.get('threads', '?')} threads, {result.get('precision', '?')}"
    device += ", MPS" if result.get("mps") else ""
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    plugins = "".join(f", plug-in {name}" for name in about.get("plugins", []))
    return about.get("commit") or "unknown", device, about.get("os", "?"), versions + plugins


def inputs(found: Found, lines: pd.DataFrame) -> Table:
    """Images and weights by their hashes."""
    ids = set(lines["id"])
    seen: dict[tuple[str, ...], dict[str, Cell]] = {}
    for record in found.evaluations:
        if record.id in ids:
            data, weights = record.spec["train"]["data"], record.spec["train"]["weights"]
            counts = [Cell(data.get(f"{kind}_images")) for kind in ("train", "test")]
            hashes = f"{data['manifest']} {data.get('test_manifest', '')}".strip()
            seen[data["name"], data["category"], hashes] = dict(zip(("train", "test"), counts, strict=True))
            name = (
                record.spec["train"]["backbone"],
                f"weights {weights['name']}",
                weights["sha256"] or "from a fixed seed",
            )
            seen[name] = {}
    columns = [Column("train", "training\nimages", "number"), Column("test", "test\nimages", "number")]
    return Table(
        "inputs",
        "Inputs",
        ["data set or backbone", "category or weights", "hash"],
        columns,
        sorted(seen.items(), key=lambda row: (not row[1], row[0])),
    )


def _cells(columns: Iterable[Column], values: Mapping[str, Any]) -> dict[str, Cell]:
    """Without what is not there; of large numbers no digits behind the point."""
    known = {column.key: values[column.key] for column in columns if values.get(column.key) is not None}
    large = {key: round(value) for key, value in known.items() if isinstance(value, float) and value >= 100}
    return {key: Cell(value) for key, value in (known | large).items()}


def _known(columns: Iterable[Column], rows: list[tuple[tuple[str, ...], dict[str, Cell]]]) -> list[Column]:
    return [column for column in columns if any(column.key in cells for _, cells in rows)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(set(known)) == 1:
        return known[0]
    return float(np.mean(known)) if known else None
