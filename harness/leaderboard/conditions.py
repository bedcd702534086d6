"""Which lines a comparison is of: conditions such as `method=dskd` and `latency_p50_ms<20`."""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from dskd.config import ConfigError, require, suggest
from harness.leaderboard.frame import CALLED, LABELS, settings_of

_CONDITION = re.compile("(.+?)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def select(lines: pd.DataFrame, conditions: Sequence[str], costs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Those lines that meet every condition `key=value`, `key!=value` or `key<number` (also `<=`, `>`, `>=`); of the
    same key, `=` means one or the other.

    Keys are labels, settings and `degenerate`, and for `<` and `>` also what `costs` has of a line's model.

    Args:
        costs: numbers by `model`; of several lines for one model, for its devices, all have to meet the condition.

    Raises:
        ConfigError: a condition that cannot be read, an unknown key, or nothing left (with what there is).
    """
    keys = [*LABELS, "degenerate", *settings_of(lines)]
    known = [] if costs is None else [key for key in costs.columns if key != "model"]
    wanted: dict[tuple[str, str], list[str]] = {}
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        require(
            parts is not None,
            f"--where: {condition!r} is not possible; write key=value, key!=value or key<number (also >, <=, >=)",
        )
        key, sign, value = parts.groups()
        if key not in keys and not (key in known and sign in _COMPARED):
            require(
                key not in known, f"--where: {key} is a number; write {key}<{value or '20'} or {key}>{value or '20'}"
            )
            raise ConfigError(f"--where: unknown key {key!r}; {suggest(key, [*keys, *known])}")
        wanted.setdefault((key, sign), []).append(value)
    for (key, sign), values in wanted.items():
        if sign in _COMPARED:
            found = lines[key] if key in keys else _worst(lines, costs, key, sign)
            for value in values:
                lines, found = _compared(lines, found, key, sign, value)
            continue
        texts = lines[key].astype(str)
        hit = texts.isin(values) | (lines[f"{key}_name"].isin(values) if key in CALLED else False)
        kept = lines[hit != (sign == "!=")]
        _require_some(kept, texts.unique(), key, sign, ",".join(values))
        lines = kept
    return lines.reset_index(drop=True)


def _worst(lines: pd.DataFrame, costs: pd.DataFrame, key: str, sign: str) -> pd.Series:
    """Of each line's model the value that is hardest to keep below, or above, a bound."""
    of_model = costs.groupby("model")[key].agg("max" if sign.startswith("<") else "min")
    return lines["model"].map(of_model)


def _compared(lines: pd.DataFrame, found: pd.Series, key: str, sign: str, value: str) -> tuple[pd.DataFrame, pd.Series]:
    """The lines that meet the condition, and their values."""
    try:
        bound = float(value)
    except ValueError:
        raise ConfigError(f"--where: {key}{sign}{value}: {value!r} is no number; write {key}{sign}20") from None
    meets = _COMPARED[sign](pd.to_numeric(found, errors="coerce"), bound)  # what is no number meets nothing
    _require_some(lines[meets], found.dropna().unique(), key, sign, value)
    return lines[meets], found[meets]


def _require_some(kept: pd.DataFrame, there: Iterable[Any], key: str, sign: str, value: str) -> None:
    if kept.empty:
        listed = ", ".join(sorted(map(str, there))) or "not known of any"
        raise ConfigError(f"--where: no evaluation has {key}{sign}{value}; {key} is {listed}")
