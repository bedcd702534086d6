"""A trained model as one file: the tensors of its teacher and its students, and beside them all that decides its
numbers, as JSON in the header of a safetensors file. Nothing in it is code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import dskd.methods
from dskd.config import ConfigError, from_mapping, require, to_mapping
from harness.data.catalog import PIXEL_REVISION
from harness.environment import describe_environment, utc_now
from harness.files import write_atomic
from harness.predict.content import Content
from harness.shapes import MisfitError, Number, checker, load, require_shape
from harness.spec import METRIC_REVISION
from harness.text import one_line

SCHEMA = 1  # raised when readers of today could not use a pack
KEY, HASH = "harness_pack", "sha256"  # of the header
TEACHER, STUDENTS = "teacher.", "students."  # begin the names of tensors
_WHOLE = Number("a whole number", whole=True)
_HEAD = checker(
    {
        "schema": _WHOLE,
        "content": dict,
        "packed": str,
        "commit": str,
        "versions": dict,
        "revisions": dict.fromkeys(("methods", "metrics", "pixels"), _WHOLE),
    }
)


@dataclass(frozen=True)
class Pack:
    """What a pack holds: `about` is of the file itself (when and by which commit and versions it was packed)."""

    content: Content
    teacher: dict[str, Tensor]
    students: dict[str, Tensor]
    about: dict[str, Any]


def write(path: Path, content: Content, teacher: Mapping[str, Tensor], students: Mapping[str, Tensor]) -> None:
    """Write the file whole, or leave what was there. Raises OSError."""
    tensors = {f"{TEACHER}{name}": value for name, value in teacher.items()}
    tensors |= {f"{STUDENTS}{name}": value for name, value in students.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    environment = describe_environment()
    document = {
        "schema": SCHEMA,
        "content": to_mapping(content),
        "packed": utc_now(),
        "commit": environment["commit"],
        "versions": environment["packages"],
        "revisions": _revisions(),
    }
    head = json.dumps(document, allow_nan=False)
    write_atomic(path, save(tensors, {KEY: head, HASH: _sha256(head, tensors)}))


def read(path: Path) -> Pack:
    """The pack in a file.

    Raises:
        ConfigError: one line with what is wrong: no pack, one that was cut or changed, of a newer schema, or of another
            revision of methods, metrics or pixels, with which it would give other numbers.
    """
    head, tensors, sha256 = _opened(path)
    document = _document(head)
    schema = document.get("schema")
    require(
        type(schema) is not int or schema <= SCHEMA,
        f"{path} is a pack of schema {schema}, newer than this harness reads ({SCHEMA}); update dskd-harness",
    )
    require(
        sha256 == _sha256(head, tensors),
        f"{path} is damaged: its content is not what its sha256 says; copy it again, or pack the run again",
    )
    try:
        require_shape(document, _HEAD)
        for name, revision in _revisions().items():
            require(
                document["revisions"][name] == revision,
                f"{path} was packed by another revision of the {name} ({document['revisions'][name]}, here {revision}; "
                f"commit {document['commit'] or 'unknown'}), so its thresholds do not hold here; pack the run again, "
                "or install that version",
            )
        content = from_mapping(Content, document["content"])
    except MisfitError as error:
        raise ConfigError(f"{path} is no pack of this harness: {error}") from None
    parts = {
        begin: {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
        for begin in (TEACHER, STUDENTS)
    }
    about = {key: value for key, value in document.items() if key != "content"} | {HASH: sha256}
    return Pack(content, parts[TEACHER], parts[STUDENTS], about)


def _opened(path: Path) -> tuple[str, dict[str, Tensor], str]:
    """Header and tensors of a file, and the hash that it says of them. Raises ConfigError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            require(
                KEY in metadata,
                f"{path} is a safetensors file, but no pack; `harness pack RUN --out FILE` makes one",
            )
            return metadata[KEY], {name: file.get_tensor(name) for name in file.keys()}, metadata.get(HASH, "")  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(
            f"{path} is no pack, or was cut ({one_line(str(error))[:120]}); copy it again, or make one with "
            "`harness pack RUN --out FILE`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from None


def _document(head: str) -> dict[str, Any]:
    """Of the header; empty where it is none."""
    try:
        document = load(head.encode())
    except MisfitError:
        return {}
    return document if isinstance(document, dict) else {}


def _sha256(head: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the header's document and of every tensor: name, type, shape and values."""
    found = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _revisions() -> dict[str, int]:
    """What decides numbers and is in no spec."""
    return {"methods": dskd.methods.REVISION, "metrics": METRIC_REVISION, "pixels": PIXEL_REVISION}
