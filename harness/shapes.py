"""What a file must hold for those who read it: shapes as plain data, and one function that turns them into a check.

A shape names what readers rely on and no more: a mapping may have further keys, of a newer commit or of a user.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from harness.text import one_line

LARGE = 1e300  # what is beyond it is no measurement, and sums of it would overflow
DEEPEST = 40  # levels of nesting: what is read is walked by functions that call themselves
MOST_PARTS = 256  # that a check remembers
SHOWN = 60  # characters of a wrong value in a message

Check = Callable[[Any], str]  # what is wrong with a value, empty where nothing is


class MisfitError(ValueError):
    """Content that is not what its readers rely on: one line with what and where, and what would be right."""


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`; `above`: beyond `low`; `whole`: no fraction."""

    what: str
    low: float = -LARGE
    high: float = LARGE
    above: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Null:
    """Null, or what has the shape."""

    shape: Any


@dataclass(frozen=True)
class Each:
    """A mapping (`of=dict`) or list of which each value has the shape."""

    shape: Any
    of: type = dict


@dataclass(frozen=True)
class Part:
    """A mapping that many documents share, and that is checked once for all that hold the same object."""

    shape: Any


@dataclass(frozen=True)
class OneOf:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class AnyOf:
    """What has one of these shapes; `what`: all of them, in a message."""

    shapes: tuple[Any, ...]
    what: str


@dataclass(frozen=True)
class Time:
    """An ISO time, as `2026-01-31T12:00:00+00:00`."""


# A dict is a mapping with these keys: `name` must be there, `name?` need not, `name*` are all that begin so. A tuple is
# a list of just these.
Shape = Any  # a dict or tuple of shapes, a type (`object`: anything), or one of the classes above
_NAMES = {str: "a text", dict: "a mapping", list: "a list", bool: "true or false", object: "a value"}


def load(content: bytes) -> Any:
    """The document of JSON as the standard has it, of bounded depth. Raises MisfitError for everything else."""
    try:
        text = content.decode().strip("\ufeff \t\r\n")  # some editors mark a text as Unicode
        if not text:
            raise MisfitError("is empty")
        document, end = _scan(text, 0)
    except RecursionError:
        raise MisfitError("is nested too deep") from None
    except StopIteration:
        raise MisfitError("is not JSON: it does not begin with a value") from None
    except MisfitError:
        raise
    except ValueError as error:
        raise MisfitError(f"is not JSON: {one_line(str(error))[: 2 * SHOWN]}") from None
    if end != len(text):
        raise MisfitError(f"is not JSON: more follows after character {end}")
    if text.count("{") + text.count("[") > DEEPEST and _is_deeper(document, DEEPEST):
        raise MisfitError("is nested too deep")
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


_scan = json.JSONDecoder(parse_constant=_refuse).scan_once  # of 10,000 records what `decode` adds is seen


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner if type(each) in (dict, list))


def checker(shape: Shape) -> Check:
    """A function that says what is wrong with a value: `.seed: 'a' is not possible; a whole number is expected`."""
    match shape:
        case dict():
            return _mapping(shape)
        case tuple():
            return _tuple(shape)
        case Number():
            return _number(shape)
        case Null():
            inner = checker(shape.shape)
            return lambda value: "" if value is None else inner(value)
        case Each():
            return _each(shape)
        case Part():
            return _part(checker(shape.shape))
        case OneOf():
            return lambda value: "" if value in shape.options else _wrong(value, f"one of {', '.join(shape.options)}")
        case AnyOf():
            checks = [checker(inner) for inner in shape.shapes]
            return lambda value: "" if any(not check(value) for check in checks) else _wrong(value, shape.what)
        case Time():
            return _time
    return lambda value: "" if isinstance(value, shape) else _wrong(value, _NAMES[shape])


def require_shape(value: Any, check: Check) -> None:
    """Raises MisfitError where the check finds something wrong."""
    wrong = check(value)
    if wrong:
        raise MisfitError(wrong.removeprefix(".").removeprefix(": "))


def require_whole_characters(document: Any) -> None:
    """Raises MisfitError for texts with halves of surrogate pairs, which no table and no file can hold."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MisfitError("holds a text that is not Unicode") from None


def _mapping(shape: Mapping[str, Shape]) -> Check:
    needed = [(key, checker(inner)) for key, inner in shape.items() if key[-1] not in "?*"]
    possible = [(key[:-1], checker(inner)) for key, inner in shape.items() if key[-1] == "?"]
    starts = [(key[:-1], checker(inner)) for key, inner in shape.items() if key[-1] == "*"]

    def check(value: Any) -> str:
        if type(value) is not dict:
            return _wrong(value, "a mapping")
        for key, inner in needed:
            if key not in value:
                return f".{key} is missing"
            wrong = inner(value[key])
            if wrong:
                return f".{key}{wrong}"
        for key, inner in possible:
            if key in value:
                wrong = inner(value[key])
                if wrong:
                    return f".{key}{wrong}"
        for start, inner in starts:
            for key, each in value.items():
                if key.startswith(start):
                    wrong = inner(each)
                    if wrong:
                        return f".{one_line(key)[:SHOWN]}{wrong}"
        return ""

    return check


def _number(shape: Number) -> Check:
    kinds = (int,) if shape.whole else (int, float)

    def check(value: Any) -> str:
        # Not isinstance: true is no number here. The comparison is false for what is not a number.
        if type(value) in kinds and shape.low <= value <= shape.high and not (shape.above and value == shape.low):
            return ""
        return _wrong(value, shape.what)

    return check


def _each(shape: Each) -> Check:
    inner = checker(shape.shape)

    def check(value: Any) -> str:
        if type(value) is not shape.of:
            return _wrong(value, _NAMES[shape.of])
        for key, each in value.items() if shape.of is dict else enumerate(value):
            wrong = inner(each)
            if wrong:
                return f".{one_line(str(key))[:SHOWN]}{wrong}"
        return ""

    return check


def _part(inner: Check) -> Check:
    passed: dict[int, Any] = {}  # the objects themselves, so that no other one can have their ids

    def check(value: Any) -> str:
        if passed.get(id(value)) is value:
            return ""
        wrong = inner(value)
        if not wrong:
            if len(passed) >= MOST_PARTS:
                passed.clear()
            passed[id(value)] = value
        return wrong

    return check


def _tuple(shape: tuple[Shape, ...]) -> Check:
    checks = [checker(inner) for inner in shape]

    def check(value: Any) -> str:
        if type(value) is not list or len(value) != len(checks):
            return _wrong(value, f"a list of {len(checks)}")
        return next(filter(None, (inner(each) for inner, each in zip(checks, value, strict=True))), "")

    return check


def _time(value: Any) -> str:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return _wrong(value, "a time such as 2026-01-31T12:00:00+00:00")
    return ""


def _wrong(value: Any, expected: str) -> str:
    return f": {_named(value)} is not possible; {expected} is expected"


def _named(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return _NAMES[type(value)]
    text = one_line(str(value) if isinstance(value, (int, float)) else repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
