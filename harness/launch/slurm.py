"""What SLURM is told and what it says: batch scripts, arrays, states, times. Pure."""

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dskd.config import ConfigError, quoted, require
from harness.text import one_line

SEEN = "HARNESS_SEEN"  # in a job of several nodes: a file that the first one has put where the results go
SUBMISSION = "HARNESS_SUBMISSION"  # in a job's environment: a file that lies in its results folder
# Options of sbatch of which one replaces the others.
ALTERNATIVES = (
    {"gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres"},
    {"mem", "mem-per-cpu", "mem-per-gpu"},
)
SHARED_WITH_LEADERBOARD = ("partition", "account", "qos", "clusters", "reservation")
# Its value as it is written, quotes with it; a `#` outside of quotes begins a comment.
INHERITED = re.compile(
    r"#SBATCH\s+--([\w-]+)(?:[= ]((?:\\.|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\"'\\#])*?))?\s*(?:#.*)?"
)
QUOTES = "\"'"  # a script may have them around any value

Kind = Literal["waiting", "running", "ended"]


@dataclass(frozen=True)
class Meaning:
    """What a state of SLURM means for the runs of the job: `advice` is for one that has ended without them."""

    kind: Kind
    advice: str = ""


_AGAIN = "submit again: it goes on from its checkpoints"
MEANINGS = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "SPECIAL_EXIT", "POWER_UP_NODE"), Meaning("waiting")),
    "REQUEUE_FED": Meaning("waiting"),
    "REQUEUE_HOLD": Meaning("waiting", "held: scontrol release it"),
    "RESV_DEL_HOLD": Meaning("waiting", "held, its reservation is gone: scontrol release it"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED"), Meaning("running")),
    "SUSPENDED": Meaning("running"),
    "COMPLETED": Meaning("ended", "it ended; its log says what failed"),
    "FAILED": Meaning("ended", "some of its runs failed, or it could not start: its log says why"),
    "PREEMPTED": Meaning("ended", f"another job took its place; {_AGAIN}"),
    "TIMEOUT": Meaning("ended", f"its time ran out; {_AGAIN}"),
    "DEADLINE": Meaning("ended", f"its deadline passed; {_AGAIN}"),
    "NODE_FAIL": Meaning("ended", f"its node died; {_AGAIN}"),
    "BOOT_FAIL": Meaning("ended", f"its node did not boot; {_AGAIN}"),
    "OUT_OF_MEMORY": Meaning("ended", "host memory ran out: submit again with more, --sbatch mem=64G"),
    "CANCELLED": Meaning("ended", f"it was cancelled; {_AGAIN}"),
    "REVOKED": Meaning("ended", _AGAIN),
}


def meaning(state: str) -> Meaning:
    """Of a state as squeue and sacct write it (`CANCELLED by 1000`, `RUNNING+`). An unknown one is waited for."""
    return MEANINGS.get(state.split()[0].rstrip("+") if state.split() else "", Meaning("waiting", f"state {state}"))


def check_text(what: str, text: str) -> None:
    """Raises ConfigError for a text that would be more than one line of a batch script, or is no UTF-8."""
    require(
        one_line(text) == text,
        f"{what}: {quoted(text)} has a line break or another control character, which a batch script cannot hold; "
        "write it without",
    )


def check_folder(folder: Path) -> None:
    """Raises ConfigError for a results folder that SLURM would take for another one: the names of outputs are patterns
    to it, in which `%j` is the job.
    """
    check_text("--out", str(folder))
    require(
        not set("%\\") & set(str(folder)), f"--out: {folder} has % or \\ in it, a pattern to SLURM; name another folder"
    )


def directive(value: str) -> str:
    """A value as a `#SBATCH` line must have it: sbatch ends it at a space or `#`, and takes quotes and backslashes
    away.
    """
    return value if re.fullmatch(r"[^\s\"'\\#]*", value) else '"' + re.sub(r"([\"\\])", r"\\\1", value) + '"'


def parse_options(items: Iterable[str]) -> dict[str, str | None]:
    """`["time=1:00:00", "exclusive"]` to options of sbatch as `directive` writes them; `key=` takes one out of the
    script. Raises ConfigError.
    """
    options: dict[str, str | None] = {}
    for item in items:
        check_text("--sbatch", item)
        key, equals, value = item.partition("=")
        key = key.strip().removeprefix("--").replace("_", "-")
        require(
            bool(re.fullmatch(r"[a-z][a-z-]+", key)),
            f"--sbatch: {quoted(item)} is not possible; write an option of sbatch as key=value: partition=gpu, mem=64G",
        )
        require(
            key not in ("array", "comment", "dependency", "wrap", "output"),
            f"--sbatch: {key} is for harness submit to write; "
            "--shards and --max-parallel say how many elements an array has, and its jobs are found by their comment",
        )
        options[key] = directive(value.strip()) if equals else None
    return options


def options_of(script: str) -> dict[str, str | None]:
    """The `#SBATCH --key=value` lines of a batch script, up to its first command, as sbatch reads them."""
    found: dict[str, str | None] = {}
    for line in itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), script.splitlines()):
        if match := INHERITED.fullmatch(line):
            found[match[1]] = match[2]
    return found


def merge(own: Mapping[str, str | None], options: Mapping[str, str | None]) -> dict[str, str | None]:
    """A script's options with others put over them; an empty value takes an option out."""
    replaced = {key for group in ALTERNATIVES if group & options.keys() for key in group}
    merged = {key: value for key, value in own.items() if key not in replaced} | dict(options)
    return {key: value for key, value in merged.items() if value != ""}


def render(
    script: str,
    options: Mapping[str, str | None],
    environment: Mapping[str, str],
    arguments: Sequence[str],
) -> str:
    """The batch script with these options of sbatch, environment variables and arguments written into it."""
    lines = script.splitlines()
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    require(end is not None, "--script: there is no command in the batch script; write one, such as slurm/sweep.sh")
    head = [line for line in lines[:end] if not INHERITED.fullmatch(line) and line.startswith("#!")]
    head += [f"#SBATCH --{key}" + ("" if value is None else f"={value}") for key, value in options.items()]
    head += ["", "# Written by `harness submit`; the rest is the script that it was made from."]
    head += [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    head += [f"set -- {shlex.join(arguments)}", ""]
    return "\n".join([*head, *lines[end:]]) + "\n"


def shard_count(seconds: Sequence[float], target_s: float, workers: int) -> int:
    """So many shards that each has work for about `target_s` on `workers` at a time; one for each run at most."""
    return max(1, min(len(seconds), math.ceil(sum(seconds) / (target_s * workers))))


@dataclass(frozen=True)
class Array:
    """Elements of one array: element i does shard `offset` + i."""

    offset: int
    elements: tuple[int, ...]

    def spec(self, at_a_time: int | None) -> str:
        """For `--array`: `0-3,7%2`"""
        blocks = []
        for _, block in itertools.groupby(enumerate(self.elements), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in block]
            blocks.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
        return ",".join(blocks) + (f"%{at_a_time}" if at_a_time else "")


def arrays(shards: Iterable[int], most: int) -> list[Array]:
    """The shards in as few arrays as a cluster takes whose indices end below `most` (its MaxArraySize)."""
    return [
        Array(chunk * most, tuple(shard - chunk * most for shard in block))
        for chunk, block in itertools.groupby(sorted(shards), key=lambda shard: shard // most)
    ]


def seconds_of(time: str) -> float:
    """Of a time limit as sbatch takes it: `90`, `1:30:00`, `2-12`, `UNLIMITED`. Raises ConfigError."""
    time = time.strip(QUOTES)
    if time.upper() in ("UNLIMITED", "INFINITE", "0"):
        return math.inf
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time, re.ASCII)
    if match is None:
        raise ConfigError(
            f"--sbatch time: {quoted(time)} is not possible; write minutes, hours:minutes:seconds or days-hours"
        )
    days, *parts = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[4] is None:  # minutes[:seconds]
        parts = [0, *parts[:2]]
    hours, minutes, seconds = parts
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds


def warning_s(signal: str | None) -> int:
    """How long before the end `--signal` warns: 120 for `B:USR1@120`, SLURM's 60 where it names no time. Raises
    ConfigError.
    """
    if not signal:
        return 0
    match = re.fullmatch(r"(?:[BR]{1,2}:)?\w+(?:@([0-9]{0,5}))?", signal.strip(QUOTES))
    require(
        match is not None,
        f"--sbatch signal: {quoted(signal)} is not possible; write a signal and how many seconds before the end it "
        "comes, such as USR1@120",
    )
    return int(match[1] or 60)


def time_of(seconds: float) -> str:
    """`01:30:00`: as sbatch takes it, up to whole minutes."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def gpus_of(options: Mapping[str, str | None]) -> int:
    """How many GPUs of each node a job with these options has; 0 where it asks for none. Raises ConfigError."""
    asked = (options.get("nodes") or "1").strip(QUOTES)
    first = re.match(r"[1-9][0-9]{0,8}(?![0-9])", asked)
    require(first is not None, f"--sbatch nodes: {quoted(asked)} is not possible; write how many, 2 or 2-4")
    nodes = int(first[0])
    for key in ("gpus-per-node", "gpus-per-task", "gres", "gpus"):
        value = options.get(key)
        if value and (key != "gres" or "gpu" in value):
            match = re.search(r"(?:^|:)([0-9]{1,9})$", value)
            count = int(match[1]) if match else 1
            return max(1, count // nodes) if key == "gpus" else count
    return 0


TRANSIENT = re.compile(r"[Tt]imed out|Unable to contact|temporarily unavailable|Connection (refused|reset)|try again")


def is_transient(message: str) -> bool:
    """Whether what a command of SLURM wrote tells of a controller that is busy or restarts."""
    return TRANSIENT.search(message) is not None


def first_error(message: str) -> str:
    """The line of what a command of SLURM wrote that says what is wrong, without its prefixes."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    chosen = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
    return re.sub(r"^(\w+: )?((error|fatal): )?(Batch job submission failed: )?", "", chosen)


def launcher(python: str, nodes: int, processes: int, host: str, port: int) -> list[str]:
    """The command that starts so many ranks on each of a job's nodes; what they run follows it.

    torch's launcher, which Accelerate's calls: that one starts a single process on CPUs without a word.
    """
    ranks = f'exec "$0" -m torch.distributed.run --node-rank "$SLURM_NODEID" --nnodes {nodes} '
    ranks += f'--nproc-per-node {processes} --master-addr {host} --master-port {port} "$@"'
    # A rank that dies on one node is told to the launchers of the others, but a node that is gone is not.
    step = [
        "srun",
        "--mpi=none",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
    ]
    return [*step, "bash", "-c", ranks, python]
