"""This place in a cluster: commands of SLURM that survive a busy controller, and what a job sees of where it is."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from dskd.config import ConfigError, require
from harness.launch.slurm import SEEN, SUBMISSION, first_error, is_transient

ATTEMPTS = 6
PATIENCE_S = 60.0


class ClusterError(RuntimeError):
    """SLURM refused, or could not be reached; the text is its own line."""


def call(*command: str) -> str:
    """What a command of SLURM prints. Raises ClusterError.

    sbatch hands its environment to the job: with this Python's folder in PATH the job finds the same `harness`.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, env=environment
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} timed out after {PATIENCE_S:g} s") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise ClusterError(first_error(done.stderr))
    return done.stdout


def patiently(do: Callable[[], str]) -> str:
    """`do`, again after 1, 2, 4 … seconds while the controller is too busy to answer."""
    for attempt in range(ATTEMPTS):
        try:
            return do()
        except ClusterError as error:
            if attempt == ATTEMPTS - 1 or not is_transient(str(error)):
                raise
            time.sleep(2.0**attempt)
    raise AssertionError


def submit(path: str, mark: str) -> str:
    """Submit a batch script whose `--comment` is `mark`; the job's id.

    The answer to a submission that went through may be lost, so before it is tried again the queue is asked.
    """
    first = True

    def attempt() -> str:
        nonlocal first
        if not first:
            for line in call("squeue", "--me", "--noheader", "--format=%A|%F|%k").splitlines():
                job, array, comment = line.split("|", 2)
                if comment.strip() == mark:
                    return array if array != "N/A" else job
        first = False
        return call("sbatch", "--parsable", path).strip().split(";")[0]

    return patiently(attempt)


def check(path: str) -> None:
    """Ask SLURM whether it would take the batch script. Raises ConfigError with its reason."""
    try:
        patiently(lambda: call("sbatch", "--test-only", path))
    except ClusterError as error:
        there = ""
        if "partition" in str(error):
            names = call("sinfo", "--noheader", "--format=%R").split()
            there = f"; partitions here: {', '.join(sorted(set(names)))}"
        raise ConfigError(f"sbatch refuses the job: {error}{there}; --sbatch key=value sets its options") from None


def require_sbatch() -> None:
    require(
        shutil.which("sbatch") is not None,
        "there is no sbatch on PATH; call this on a login node of a SLURM cluster, or `harness run` on this machine",
    )


def max_array_size() -> int:
    """Of the cluster; SLURM's default where it does not say."""
    try:
        lines = patiently(lambda: call("scontrol", "show", "config")).splitlines()
        return next(int(line.split("=")[1]) for line in lines if line.startswith("MaxArraySize"))
    except (ClusterError, StopIteration, ValueError):
        return 1001


def snapshot(jobs: Collection[str]) -> dict[str, tuple[str, str]] | None:
    """State and reason of each element (`12_3`) or job (`12`) of these jobs; None where SLURM cannot be asked.

    One call of sacct and one of squeue, which is believed where they differ: sacct trails by seconds, but knows what
    squeue has forgotten. It may be missing; what neither knows is left out.
    """
    if not jobs or shutil.which("squeue") is None:
        return None
    found: dict[str, tuple[str, str]] = {}
    with suppress(ClusterError):  # no accounting here
        command = ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(sorted(jobs))}"]
        found |= _rows(call(*command, "--format=JobID,State,Reason"), jobs)
    try:
        return found | _rows(call("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"), jobs)
    except ClusterError:
        return found or None


def _rows(text: str, jobs: Collection[str]) -> dict[str, tuple[str, str]]:
    rows: Sequence[list[str]] = [line.split("|") for line in text.splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3 and row[0].split("_")[0] in jobs}


def slurm_id() -> str:
    """`12`, or `12_3` for an element of an array; empty outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def node_count() -> int:
    """The nodes of the job that this runs in; 1 outside of one."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def this_node() -> str:
    """The name that the other nodes of the job know this one by."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def free_port(job: int) -> int:
    """The first free port of this machine from one that the job's number gives: jobs that share a node seldom meet."""
    start = 20000 + job * 16 % 12000
    for port in range(start, start + 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"ports {start} to {start + 999} are all taken")


def check_submission(results: Path) -> None:
    """Raises ConfigError in a job of `harness submit` whose results folder is not the one that was submitted for, and
    on a node that does not see the folder of the job's first one.
    """
    seen, token = os.environ.get(SEEN), os.environ.get(SUBMISSION)
    require(
        seen is None or os.path.exists(seen),
        f"--out: {results} on {os.uname().nodename} is not the folder of the job's first node; name one on a file "
        "system that the nodes share",
    )
    require(
        token is None or (results / token).exists(),
        f"--out: {results} on {os.uname().nodename} is not the folder that `harness submit` saw; name one on a file "
        "system that the compute nodes share",
    )
