"""Frozen dataclasses as configuration: set by dotted keys, checked against their annotations, turned into plain JSON.

Every option of a method or a run is a field of a frozen dataclass; nothing travels as a bare dict. A wrong name or
value raises `ConfigError` with one line that says what to write instead.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")
MOST_SHOWN = 200  # characters of a value in a message
MOST_OPTIONS = 1000  # characters of the options in a message
FEW_OPTIONS = 12  # more of them are not listed beside a near match
WHOLE = (-(2**63), 2**64 - 1)  # what generators take for a seed; no other number of a config comes near


class ConfigError(ValueError):
    """A name or value that a user wrote and that cannot be meant; its text is one line with what would be right."""


def suggest(word: object, options: Iterable[str]) -> str:
    """The tail of an error message: the near match if there is one, in whatever case, and the options: "did you mean
    'dskd'? one of: …". Many options are listed only where none is near.
    """
    options = list(options)
    lower = {option.lower(): option for option in reversed(options)}  # of two that differ in case the first
    near = difflib.get_close_matches(_shortened(_text(word, str)).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {quoted(lower[near[0]])}?" if near else ""
    if near and len(options) > FEW_OPTIONS:
        return f"{hint} ({len(options)} are possible)"
    listed = ", ".join(options)
    if len(listed) > MOST_OPTIONS:
        listed = f"{listed[:MOST_OPTIONS].rpartition(', ')[0] or listed[:MOST_OPTIONS]}, ... ({len(options)} in all)"
    return f"{hint} one of: {listed}".lstrip()


def quoted(value: object) -> str:
    """A value that a user wrote, as messages show it: its start, if it is long."""
    return _shortened(_text(value, repr))


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _text(value: object, write: Callable[[object], str]) -> str:
    try:
        return write(value)
    except (ValueError, RecursionError):  # more digits than Python writes, lists within lists
        return f"a very large {type(value).__name__}"


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def dotted_keys(cls: type, prefix: str = "") -> list[str]:
    """All keys that `replace` accepts for this class, nested ones as `train.epochs`."""
    keys = []
    for name, kind in field_types(cls).items():
        keys += dotted_keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]
    return keys


def replace(config: T, values: Mapping[str, Any], where: str = "") -> T:
    """A copy of `config` with the dotted keys of `values` set: `replace(method, {"train.epochs": 10})`.

    Raises:
        ConfigError: a key that does not exist (with the near match), or a value that its field does not take.
    """
    kinds = field_types(type(config))
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if head not in kinds or (bool(rest) and not dataclasses.is_dataclass(kinds[head])):
            options = [where + name for name in dotted_keys(type(config))]
            raise ConfigError(f"unknown key {quoted(where + key)}; {suggest(where + key, options)}")
        if rest:
            nested.setdefault(head, {})[rest] = value
        elif dataclasses.is_dataclass(kinds[head]) and isinstance(value, Mapping):
            nested.setdefault(head, {}).update(value)
        else:
            changes[head] = coerce(value, kinds[head], where + key)
    for head, inner in nested.items():
        changes[head] = replace(getattr(config, head), inner, f"{where}{head}.")
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def coerce(value: Any, kind: Any, key: str) -> Any:
    """`value` as the annotation `kind` wants it (7 as 7.0 for a float, a list as a tuple, "1e-3" as YAML leaves it).

    Of several kinds the first that takes it counts; one that is `Annotated` with a text is called so in messages.

    Raises:
        ConfigError: the value does not fit; the message names `key` and what would be right.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        raise ConfigError(
            f"{key}: {quoted(value)} is not possible; {suggest(value, [str(option) for option in arguments])}"
        )
    if origin is Annotated:
        return coerce(value, arguments[0], key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _first_of([argument for argument in arguments if argument is not type(None)], value, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: {quoted(value)} is not possible; write a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{key}: a list of {len(arguments)} values is needed, {len(value)} given")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(coerce(item, inner, key) for item, inner in zip(value, kinds, strict=True))
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, key)
    kind = origin or kind  # dict[str, Any] as dict
    if kind is float:
        # YAML 1.1 reads 1e-3 as text: only 1.0e-3 is a number to it.
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        raise ConfigError(f"{key}: {quoted(value)} is not possible; write a number")
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{key}: {quoted(value)} is not possible; write {_called(kind)}")
    if kind is int and not WHOLE[0] <= value <= WHOLE[1]:
        raise ConfigError(f"{key}: {quoted(value)} is not possible; write a whole number of at most 19 digits")
    return value


def _first_of(kinds: list[Any], value: Any, key: str) -> Any:
    if len(kinds) == 1:
        return coerce(value, kinds[0], key)
    for kind in kinds:
        try:
            return coerce(value, kind, key)
        except ConfigError:
            continue
    raise ConfigError(f"{key}: {quoted(value)} is not possible; write {' or '.join(map(_called, kinds))}")


def _called(kind: Any) -> str:
    """A kind of values in a message."""
    if typing.get_origin(kind) is Annotated:
        return str(typing.get_args(kind)[1])
    names = {int: "a whole number", bool: "true or false", str: "a text", dict: "a mapping"}
    return names.get(kind, kind.__name__)


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """The inverse of `to_mapping`: a `cls` from nested plain data. Raises ConfigError as `replace` does."""
    if dataclasses.is_dataclass(cls) and isinstance(mapping, cls):
        return mapping
    prefix = f"{where}." if where else ""
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where or cls.__name__}: {quoted(mapping)} is not possible; write a mapping of {cls.__name__}'s keys"
        )
    kinds = field_types(cls)
    for key in mapping:
        if key not in kinds:
            raise ConfigError(f"unknown key {quoted(f'{prefix}{key}')}; {suggest(key, kinds)}")
    try:
        return cls(**{key: coerce(value, kinds[key], prefix + key) for key, value in mapping.items()})
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from None


def to_mapping(config: Any) -> Any:
    """Nested plain data, ready for JSON; tuples become lists."""
    if dataclasses.is_dataclass(config):
        return {name: to_mapping(getattr(config, name)) for name in field_types(type(config))}
    return [to_mapping(item) for item in config] if isinstance(config, tuple) else config


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data with dotted keys: `{"train": {"epochs": 1}}` as `{"train.epochs": 1}`."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def difference(config: Any) -> dict[str, Any]:
    """As `to_mapping`, without the fields that have their class's default: it stays the same when a field is added."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            nested = difference(value)
            changed |= {field.name: nested} if nested else {}
        elif value != field.default:
            changed[field.name] = to_mapping(value)
    return changed


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds: the checks of `__post_init__` in one line each."""
    if not condition:
        raise ConfigError(message)
