"""Plug-ins: modules of other packages that register methods, backbones and data sets. No torch is imported here."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dskd.config import ConfigError, quoted
from harness.files import user_path

GROUP = "dskd_harness.plugins"  # of the entry points that are always loaded
GIVEN = "HARNESS_PLUGINS"  # in a worker's environment: what `--plugin` named, as JSON
_versions: dict[str, str] = {}
_files: set[Path] = set()  # an installed plug-in may be named by its file too
_given: dict[str, None] = {}


def load(modules: Iterable[str] = ()) -> None:
    """Import every installed plug-in, then `modules`, each once per process.

    Args:
        modules: names that can be imported, or paths of .py files.

    Raises:
        ConfigError: a module that does not exist, with what to write instead, or one that cannot be imported, with why.
    """
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.module not in _versions:
            with _explaining(f"{entry.module} (of the installed {entry.dist.name})"):
                entry.load()
            _remember(entry.module, getattr(sys.modules[entry.module], "__file__", None), entry.dist.version)
    for module in modules:
        if module.endswith(".py"):
            _load_file(Path(os.path.realpath(user_path(module))))
        else:
            _load_name(module)


def loaded() -> dict[str, str]:
    """Each plug-in's version: its distribution's, or for a module outside of any the start of its file's sha256."""
    return dict(_versions)


def environment() -> dict[str, str]:
    """What tells a worker to load the same plug-ins."""
    return {GIVEN: json.dumps(list(_given))}


def handed_down() -> list[str]:
    """A worker's side of `environment`."""
    return json.loads(os.environ.get(GIVEN, "[]"))


def _load_name(name: str) -> None:
    if name not in _versions:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f"--plugin: {quoted(name)} is not possible; write a module's name or the path of a .py file"
            )
        try:
            with _explaining(name):
                module = importlib.import_module(name)
        except ConfigError as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
                raise ConfigError(f"--plugin: there is no module {quoted(name)}; {_instead(name)}") from None
            raise
        owners = importlib.metadata.packages_distributions().get(name.partition(".")[0])
        _remember(name, getattr(module, "__file__", None), importlib.metadata.version(owners[0]) if owners else None)
    _given[name] = None


def _instead(name: str) -> str:
    file = Path(*name.split(".")).with_suffix(".py")
    return f"write --plugin {file}" if file.is_file() else "write one that is installed or the path of a .py file"


def _load_file(path: Path) -> None:
    if path not in _files:
        if not path.is_file():
            raise ConfigError(f"--plugin: there is no file {path}; write the path of a .py file or a module's name")
        # Known to `sys.modules` as other modules are: dataclasses look their own up.
        name = f"plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        with _explaining(str(path)):
            spec.loader.exec_module(sys.modules[name])
        _remember(path.name if path.name not in _versions else str(path), str(path), None)
    _given[str(path)] = None


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Whatever an import raises as one line."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a script that was never meant to be imported exits
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"plug-in {what} cannot be imported: {type(error).__name__}: {reason}") from error


def _remember(name: str, file: str | None, version: str | None) -> None:
    if file is not None:  # a namespace package has none
        _files.add(Path(file).resolve())
        version = version or hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    _versions[name] = version or "unknown"
