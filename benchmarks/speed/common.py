"""What the speed benchmarks share: anomalib's environment, calls of its side, the line that says what measured."""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.environment import describe_environment, device_name, thread_count

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench"
SIDE = Path(__file__).parent / "anomalib_side.py"
ANOMALIB = "anomalib==2.7.0"


def anomalib_python() -> str:
    """The interpreter of an environment with anomalib, made on the first call ($ANOMALIB_VENV, else build/anomalib).

    It gets the torch of this one: without constraints pip would replace it.
    """
    folder = Path(os.environ.get("ANOMALIB_VENV") or ROOT / "build" / "anomalib")
    python = folder / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import anomalib"], capture_output=True).returncode:
        print(f"installing {ANOMALIB} into {folder} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraints = folder / "constraints.txt"
        pins = (f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision"))
        constraints.write_text("\n".join(pins))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, ANOMALIB], check=True)
    return str(python)


def anomalib(task: str, **arguments: Any) -> dict[str, Any]:
    """What `anomalib_side.py` finds. Raises SystemExit with its output if it fails."""
    done = subprocess.run([anomalib_python(), SIDE, task, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"anomalib's side failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def harness(*arguments: str, **environment: str) -> None:
    """Run a `harness` command. Raises SystemExit with its output if it fails."""
    command = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def machine() -> str:
    """What measured, in one line."""
    found = describe_environment()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "timm", "numpy"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {device_name()}, {thread_count()} threads, {packages}, "
        f"Python {platform.python_version()}, commit {found['commit'] or 'unknown'}"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured there")


def save(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found | {"machine": machine()}, indent=1) + "\n")
