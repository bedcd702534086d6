"""One command that proves and measures a GPU in at most nine minutes.

    python benchmarks/gpu/prove.py [--only compiled,whole_step] [--seconds 520] [--out FOLDER] [--device cpu]

Each block runs in a process and within a time of its own, so that what fails or hangs costs itself alone; what it had
measured by then is kept. `--only mvtec` is a grid of a third of MVTec AD's size, which takes all the time by itself.
Prints a line a block, writes `gpu-<device>.json` and `gpu-<device>.md` after each, into benchmarks/results unless --out
names another folder. Exit code 1 if a block failed. `--device cpu` runs the same logic on small inputs, without what
only CUDA has. No setting of the card is touched.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DRIVER = HERE / "prove.py"
sys.path[:0] = [str(HERE), str(ROOT)]

from page import page, slug  # noqa: E402
from sheet import Sheet  # noqa: E402

# Module, seconds that it may take, whether it needs CUDA; the most wanted first.
BLOCKS: dict[str, tuple[str, float, bool]] = {
    "compiled": ("compiled_steps", 100, False),
    "whole_step": ("whole_step", 130, False),
    "anatomy": ("anatomy", 60, False),
    "metrics": ("exact", 40, False),
    "determinism": ("determinism", 80, False),
    "faults": ("faults", 80, False),
    "sharing": ("sharing", 160, False),
    "nccl1": ("nccl1", 40, False),
    "bench": ("inference", 80, False),
    "rates": ("rates", 25, False),
    "compiled_pace": ("compiled_pace", 90, False),
    "mvtec": ("mvtec", 510, False),
}
ALONE = {"mvtec"}  # takes the time of all the others, so it runs only where --only names it
LEAST = 12.0  # seconds under which no block is begun
PATIENCE = 4  # times the limit on a CPU, which may be a laptop's
QUIT = 5.0  # seconds that the page and the ends of processes take


def main() -> int:
    options = arguments()
    if options.block:
        module, _, needs_cuda = BLOCKS[options.block]
        return block(module, Sheet(options.json, options.device, options.seconds), needs_cuda)
    started = time.monotonic()
    about = describe(options.device)
    out = options.out or ROOT / "benchmarks" / "results"
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"about": about, "blocks": {}}
    command = " ".join(["python benchmarks/gpu/prove.py", *sys.argv[1:]])
    target = out / f"gpu-{slug(about['device'])}.json"
    for name in options.only or [one for one in BLOCKS if one not in ALONE]:
        left = options.seconds - QUIT - (time.monotonic() - started)
        found["blocks"][name] = one = attempt(name, options.device, left)
        print(f"{one['verdict']:7} {name} ({one['seconds']:.0f} s): {one['line']}", flush=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
        target.with_suffix(".md").write_text(page(found, command))
    print(f"written: {target.with_suffix('.md')}")
    return int(any(one["verdict"] == "FAIL" for one in found["blocks"].values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=lambda text: text.split(","), help="blocks, comma between them")
    parser.add_argument("--seconds", type=float, default=520.0, help="for all blocks together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--block", choices=BLOCKS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.only or () if name not in BLOCKS]
    if unknown:
        parser.error(f"--only: there is no block {unknown[0]}; some of {','.join(BLOCKS)}")
    if not options.seconds > 0:
        parser.error("--seconds: write a number above 0")
    if options.device == "cuda" and not options.block and not has_cuda():
        parser.error("--device: torch sees no CUDA device; write --device cpu for a small trial")
    return options


def has_cuda() -> bool:
    """Asked in another process: this one shall hold no memory of the card."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def attempt(name: str, device: str, left_s: float) -> dict[str, Any]:
    """A block's findings with its `verdict`, `seconds` and the `line` that is printed."""
    _module, limit, needs_cuda = BLOCKS[name]
    if needs_cuda and device != "cuda":
        return verdict(name, {}, 0.0, "needs CUDA", None)
    if left_s < LEAST:
        return verdict(name, {}, 0.0, "no time left", None)
    limit *= 1 if device == "cuda" else PATIENCE
    seconds, started = min(limit, left_s), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "found.json"
        command = [sys.executable, str(DRIVER), "--block", name, "--json", str(path), "--device", device]
        command += ["--seconds", str(seconds)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        environment = {"HARNESS_CACHE": str(Path(scratch) / "cache")} | environment | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        found = json.loads(path.read_text()) if path.exists() else {}
    return verdict(name, found, time.monotonic() - started, "", code)


def end(process: subprocess.Popen[bytes]) -> None:
    """A block's process, with all that it started and left in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    with suppress(subprocess.TimeoutExpired):  # what hangs in a driver cannot be ended; the next block goes on
        process.wait(10)


def verdict(name: str, found: dict[str, Any], seconds: float, why: str, code: int | None) -> dict[str, Any]:
    """What a block came to: SKIPPED with the reason, FAIL if a check failed, it ended badly or took too long."""
    failed = [one["name"] for one in found.get("checks", []) if not one["ok"]]
    line = found.get("line") or ""
    if why or found.get("skipped"):
        return {**found, "verdict": "SKIPPED", "seconds": seconds, "line": why or found["skipped"]}
    if code is None:
        failed.append(f"took longer than {seconds:.0f} s and was ended")
    elif code:
        failed.append(f"its process ended with {code}")
    if failed:
        line = f"{'; '.join(failed)}{f' ({line})' if line else ''}"
    return {**found, "verdict": "FAIL" if failed else "PASS", "seconds": seconds, "line": line}


def block(module: str, sheet: Sheet, needs_cuda: bool) -> int:
    """Inside a block's process."""
    try:
        importlib.import_module(module).run(sheet)
    except Exception as error:
        sheet.check("the block ran to its end", False, " ".join(f"{type(error).__name__}: {error}".split())[:400])
        raise
    return 0


def describe(device: str) -> dict[str, Any]:
    """What machine and versions; asked in another process."""
    code = (
        "import json, sys; sys.path[:0] = sys.argv[1:3]; from about import about; print(json.dumps(about(sys.argv[3])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(ROOT), device], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        sys.exit(f"the machine cannot be described:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
