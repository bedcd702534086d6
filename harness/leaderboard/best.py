"""Which model to take under limits: who leads within them, who is not told apart from it, and the cheapest of these.

Who leads, and by how much, is said by `contest`, over the models within the limits alone. Pure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dskd.config import ConfigError, require, suggest
from harness.leaderboard import contest, evidence
from harness.leaderboard.frame import METRICS, SPEED, Found
from harness.leaderboard.sections import Section
from harness.leaderboard.speed import COSTS
from harness.leaderboard.table import HOLE, Board, Cell, Column, Table, boards, protocol_line, scores
from harness.leaderboard.verdict import Contest, Rival, Verdict
from harness.run_folder import is_metric

MEGABYTES = {f"peak_{place}_mb": f"peak_{place}_memory_mib" for place in ("device", "host")}
CHOSEN, TIED, BEATEN, OUT = "chosen", "not told apart", "beaten", "out"
ORDER = (CHOSEN, TIED, BEATEN, OUT)
LATENCY = "latency_p50_ms"  # what is cheap, where no limit names another latency
ONLY = "the only one"
UNMEASURED = "not measured: run bench"
HOW = (
    "chosen: of the models within the limits the cheapest of those that are not told apart from the best, by latency, "
    "else by GMAC; in %: mean over categories ± 95 % interval over seeds"
)

Key = tuple[str, ...]
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Limit:
    """`key` is a metric, a cost or SPEED; `most`: the value may be no higher, else no lower. In the column's unit."""

    key: str
    bound: float
    most: bool

    def __str__(self) -> str:
        return f"{self.key} {'≤' if self.most else '≥'} {_shown(self.bound)}"

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound


def limits_of(most: Iterable[str], least: Iterable[str], metrics: Iterable[str]) -> list[Limit]:
    """Of the texts `KEY=NUMBER` of `--max` and `--min`. `metrics`: those that the records hold.

    Raises:
        ConfigError: a text that cannot be read, an unknown key, or a bound that no value of the column can mean.
    """
    made = []
    shares = list(dict.fromkeys([*METRICS, *metrics]))
    known = [*shares, SPEED, *COSTS, *MEGABYTES]
    for option, texts in (("--max", most), ("--min", least)):
        for text in texts:
            key, sign, number = text.partition("=")
            require(bool(sign), f"{option}: {text!r} is not possible; write KEY=NUMBER such as latency_p95_ms=20")
            if key not in known:
                raise ConfigError(f"{option}: unknown key {key!r}; {suggest(key, known)}")
            try:
                bound = float(number)
            except ValueError:
                bound = math.nan
            require(math.isfinite(bound), f"{option}: {text}: {number!r} is no number; write {key}=20")
            require(
                key not in shares or 0 <= bound <= 1,
                f"{option}: {text} is not possible, as {key} is a share from 0 to 1; write {key}={bound / 100:g}",
            )
            if key in MEGABYTES:
                key, bound = MEGABYTES[key], bound * 1e6 / 2**20
            made.append(Limit(key, bound, option == "--max"))
    return made


def best(
    found: Found,
    metric: str,
    most: Sequence[str] = (),
    least: Sequence[str] = (),
    device: str | None = None,
    by: Sequence[str] = ("method", "backbone"),
    where: Sequence[str] = (),
    allow_mixed: bool = False,
) -> list[Section]:
    """The models of each protocol and data set, the one to take first, with why the others are not.

    A metric is the mean over categories and seeds, as on the leaderboard. What is not there keeps no limit; a speed
    that others disturbed keeps it where it is good enough even so. Models of which runs are missing take no part.

    Args:
        metric: by which models lead; most, least: limits `KEY=NUMBER`; device: a part of the name of that whose speed
            and memory count; by, where, allow_mixed: as by `table.boards`.

    Raises:
        ConfigError: as `table.boards`, `limits_of` and `_on`; rows that are no models, a metric that is a cost.
    """
    require(
        not {"seed", "category"} & set(by),
        "--by: a seed or a category is no model; write method, backbone or a setting",
    )
    require(metric not in COSTS, f"--metric: {metric} is a cost; write a metric, and limit costs by --max")
    known = {key for record in found.evaluations for key in record.result if is_metric(key)}
    limits = limits_of(most, least, sorted(known))
    keys = [limit.key for limit in limits]
    latency = next((key for key in keys if key.startswith("latency")), LATENCY)
    columns = [metric, *(key for key in keys if key in known or key in COSTS), latency, "gmac"]
    sections = []
    for board in boards(found, by, tuple(dict.fromkeys(columns)), where, allow_mixed):
        board = _on(board, device)
        for dataset in board.datasets:
            part = replace(board, lines=board.lines[board.lines["dataset"] == dataset])
            if len(board.datasets) > 1:
                part = replace(part, protocol=" · ".join(text for text in (board.protocol, dataset) if text))
            sections.append(_section(part, metric, limits, latency))
    return sections


def _on(board: Board, wanted: str | None) -> Board:
    """The board with the measurements of one device alone: of the only one, or of that whose name is `wanted` or has it
    as a part. Raises ConfigError: that are none or several, or there are several and none is named.
    """
    speeds = board.speeds[board.speeds["model"].isin(board.lines["model"])]
    there = sorted(speeds["device"].unique())
    if wanted is None:
        listed = ", ".join(map(repr, there))
        require(len(there) <= 1, f"--device: throughput was measured on several devices; write one of {listed}")
        return replace(board, speeds=speeds)
    found = [name for name in there if name == wanted] or [name for name in there if wanted.lower() in name.lower()]
    require(bool(there), f"--device: {wanted!r}: throughput was measured on none; `bench` in the grid does it")
    if len(found) != 1:
        kind = "several devices" if found else "no device"
        raise ConfigError(f"--device: {wanted!r} names {kind}; {suggest(wanted, found or there)}")
    return replace(board, speeds=speeds[speeds["device"] == found[0]])


def _section(board: Board, metric: str, limits: Sequence[Limit], latency: str) -> Section:
    """Of a board of one data set and one device."""
    table = scores(board)
    dataset = board.datasets[0]
    names = evidence.labels([key for key, _ in table.rows])
    reasons = {key: reason for key, row in table.rows if (reason := _broken(row, dataset, limits))}
    places = dict.fromkeys(reasons, OUT)
    left = replace(table, rows=[row for row in table.rows if row[0] not in reasons])
    chosen, lines = None, []
    if left.rows:
        within = [key for key, _ in left.rows]
        part = replace(board, lines=board.lines[board.lines["row"].isin(within)], metrics=[metric])
        made = contest.contests(part, left)
        left = contest.marked(left, made, part)
        standing, why = _standings(made, left, names)
        group = [key for key in within if standing[key] == TIED]
        lines = contest.judge(part, made).lines
        if group:
            alone = BEATEN not in standing.values() and len(group) == 1
            chosen, costs = (group[0], {group[0]: ONLY}) if alone else _cheapest(group, dict(left.rows), latency)
            standing[chosen] = CHOSEN
            why |= {key: "; ".join(filter(None, (costs[key], why[key]))) for key in group}
            # Of one alone there is only to say that it has nothing to be compared with.
            lines = [_said(names[chosen], costs[chosen], len(group), limits), *(lines[1:] if alone else lines)]
        places, reasons = places | standing, reasons | why
    else:
        lines = [f"No model is within {_listed(limits)}."]
    marks = dict(left.rows)
    rows = [(key, marks.get(key, row)) for key, row in table.rows]
    about = {
        "dataset": dataset,
        "limits": [{"key": limit.key, "most" if limit.most else "least": limit.bound} for limit in limits],
        "device": next(iter(board.speeds["device"].unique()), None),
        "chosen": chosen and names[chosen],
        "seeds": board.seeds,
        "provenance": board.provenance,
    }
    footer = [HOW, protocol_line(board), *board.cautions, board.provenance]
    return Section(board.protocol, [_with_reasons(table, rows, places, reasons)], about, footer, Verdict(lines, []))


def _with_reasons(
    table: Table, rows: Sequence[tuple[Key, Row]], places: Mapping[Key, str], reasons: Mapping[Key, str]
) -> Table:
    """The rows by how they stand, with that and why in columns of their own."""
    ordered = sorted(rows, key=lambda row: ORDER.index(places[row[0]]))
    said = [(key, {**row, "standing": Cell(places[key]), "why": Cell(reasons[key] or HOLE)}) for key, row in ordered]
    columns = [*table.columns, Column("standing", "standing", "text"), Column("why", "why", "text")]
    return replace(table, name="best", title="Best", columns=columns, rows=said)


def _broken(row: Row, dataset: str, limits: Iterable[Limit]) -> str:
    """Which limits a row does not keep, with its values; empty where it keeps all."""
    said = []
    for limit in limits:
        cell = row.get(f"{dataset}.{limit.key}") or row.get(limit.key)
        if cell is None or cell.value is None:
            said.append(f"{limit.key} {_lacking(row, limit.key)}")
        elif not cell.whole:
            said.append(f"{limit.key} of {cell.runs} of {cell.expected} runs only")
        elif not limit.holds(float(cell.value)):
            again = ", disturbed: measure it again" if cell.disturbed else ""
            said.append(f"{limit.key} {_beyond(float(cell.value), limit)}{again}")
    return "; ".join(said)


def _lacking(row: Row, key: str) -> str:
    if key not in COSTS and key != SPEED:
        return "has no value in its records"
    return "is not known on this device" if SPEED in row else UNMEASURED


def _standings(
    made: Sequence[Contest], table: Table, names: Mapping[Key, str]
) -> tuple[dict[Key, str], dict[Key, str]]:
    """How each row of a contest stands, and why; all are out where it says nothing. `names`: of more rows than those of
    the contest, whose own names are shorter where less tells them apart.
    """
    keys = {name: key for key, name in evidence.labels([key for key, _ in table.rows]).items()}
    places, why = dict.fromkeys(keys.values(), OUT), dict.fromkeys(keys.values(), "has no score")
    for each in made:
        why |= {keys[name]: "runs are missing" for name in each.left_out}
        if each.says_nothing:
            why |= dict.fromkeys(keys.values(), "all runs collapsed") if each.first else {}
            continue
        places[keys[each.first]], why[keys[each.first]] = TIED, ""
        for rival in each.rivals:
            key = keys[rival.name]
            places[key], why[key] = BEATEN if rival.is_behind else TIED, _behind(rival, names[keys[each.first]])
    return places, why


def _behind(rival: Rival, first: str) -> str:
    """`15.0 [14.7, 15.2] points behind stfpm`, of the paired difference; empty where there is none."""
    if rival.difference is None:
        return ""
    low_and_high = "" if rival.interval is None else " [{:z.1f}, {:z.1f}]".format(*(100 * x for x in rival.interval))
    return f"{100 * rival.difference:z.1f}{low_and_high} points behind {first}"


def _cheapest(group: Sequence[Key], rows: Mapping[Key, Row], latency: str) -> tuple[Key, dict[Key, str]]:
    """The one of the group, best first, with the lowest latency, or the fewest GMAC where no latency is known that was
    not disturbed; and what is said of each.
    """
    if len(group) == 1:
        return group[0], {group[0]: "leads beyond noise"}
    for cost in (latency, "gmac"):
        cells = {key: cell for key in group if (cell := rows[key].get(cost)) and cell.value is not None}
        known = {key: float(cell.value or 0) for key, cell in cells.items() if not cell.disturbed}
        if known:
            chosen = min(known, key=lambda key: known[key])
            said = {key: f"dearer: {cost} {_shown(value)}" for key, value in known.items()}
            said |= {key: f"{cost} disturbed: measure it again" for key in cells if key not in known}
            rest = {key: f"{cost} {_lacking(rows[key], cost)}" for key in group if key not in cells}
            return chosen, said | rest | {chosen: f"cheapest: {cost} {_shown(known[chosen])}"}
    return group[0], dict.fromkeys(group, f"latency and GMAC {UNMEASURED}")


def _said(name: str, cost: str, group: int, limits: Sequence[Limit]) -> str:
    """The first line of the verdict: which model to take. `cost`: as by `_cheapest`, or ONLY."""
    where = f" within {_listed(limits)}" if limits else ""
    if cost == ONLY:
        return f"Take {name}: it is {ONLY}{where}."
    if group == 1:
        return f"Take {name}: it leads beyond noise{where}."
    if cost.startswith("cheapest"):
        return f"Take {name}: of {group} that are not told apart{where} it is the {cost}."
    return f"Take any of {group} that are not told apart{where}, such as {name}: which is cheapest is {UNMEASURED}."


def _listed(limits: Iterable[Limit]) -> str:
    return ", ".join(map(str, limits))


def _beyond(value: float, limit: Limit) -> str:
    """`34 > 20`; with all digits where they would read the same."""
    texts = [_shown(value), _shown(limit.bound)]
    return (" > " if limit.most else " < ").join(texts if len(set(texts)) > 1 else map(repr, (value, limit.bound)))


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
