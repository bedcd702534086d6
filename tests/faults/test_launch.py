"""What the world does to a supervisor: consoles, signals, workers, strangers, claims. Rows of the areas C, D and J.

Workers are `tests/scripts/fake_worker.py`, which needs no torch; what takes real ranks is slow.
"""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from harness import events
from harness.files import write_atomic
from harness.launch import channel, group
from harness.launch.claims import Claims
from harness.records import Failure, Results
from tests.faults.commands import Done, harness
from tests.launch.test_faults import until
from tests.launch.test_run import WriteGrid

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import sys, harness.launch.group as group
group.WORKER = [{worker!r}]
from harness.cli import main
sys.argv[0] = "harness"
main()
"""
WORKER = str(ROOT / "tests" / "scripts" / "fake_worker.py")
LIMIT_S = 60


def command(grid: Path, *options: str) -> list[str]:
    code = FAKE.format(worker=WORKER)
    return [sys.executable, "-c", code, "run", "--grid", str(grid), "--out", str(grid.parent / "runs"), *options]


def environment(how: dict[str, str], **more: str) -> dict[str, str]:
    """The fakes import this checkout, wherever they are started."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FAKE": json.dumps(how), **more}


def call(grid: Path, how: dict[str, str], *options: str, **more: str) -> Done:
    """The supervisor is this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "WORKER", [WORKER])
        for name, value in environment(how, **more).items():
            patch.setenv(name, value)
        return harness("run", "--grid", grid, "--out", grid.parent / "runs", *options)


def call_apart(grid: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which looks at these variables when it starts."""
    return subprocess.run(command(grid), env=environment({}, **more), capture_output=True, text=True, timeout=LIMIT_S)


def phases_seen(grid: Path) -> int:
    """So many runs were begun: each has a log."""
    return len(list((grid.parent / "runs" / "tiny").glob("*/log.txt")))


@pytest.fixture
def grid(tree: Path, write_grid: WriteGrid) -> Path:
    return write_grid(tree, axes={"seed": [0, 1, 2]})


class TestConsole:
    """Area D: what the supervisor prints, and where to."""

    def _goes_on(self, grid: Path, returncode: int) -> None:
        assert returncode == 0
        assert phases_seen(grid) == 3
        (log,) = (grid.parent / "runs" / "tiny" / "logs").glob("*.txt")
        assert log.read_text().count("✓ train") == 3  # what could not be shown is there

    def test_full_disk(self, grid: Path) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(command(grid), env=environment({}), stdout=full, timeout=LIMIT_S)
        self._goes_on(grid, done.returncode)

    def test_closed_pipe(self, grid: Path) -> None:
        process = subprocess.Popen(command(grid), env=environment({}), stdout=subprocess.PIPE)
        process.stdout.readline()
        process.stdout.close()
        self._goes_on(grid, process.wait(LIMIT_S))

    def test_terminal_that_is_gone(self, grid: Path) -> None:
        master, slave = pty.openpty()
        process = subprocess.Popen(command(grid), env=environment({}), stdout=slave, start_new_session=True)
        os.close(slave)
        os.read(master, 10)
        os.close(master)
        self._goes_on(grid, process.wait(LIMIT_S))

    def test_latin_1(self, grid: Path) -> None:
        done = call_apart(grid, PYTHONIOENCODING="latin-1")
        self._goes_on(grid, done.returncode)
        assert "\\u2713 train" in done.stdout

    def test_closed_descriptor(self, grid: Path) -> None:
        """Beyond the list: `>&-`, after which the next file that is opened would be standard output."""
        line = ["sh", "-c", 'exec "$0" "$@" >&-', *command(grid)]
        done = subprocess.run(line, env=environment({}), stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
        assert not done.stderr
        self._goes_on(grid, done.returncode)

    def test_markup_in_a_failure(self, grid: Path) -> None:
        message = "RuntimeError: [/__w/pytorch/pair.cc:553] Connection closed\x1b]0;title\x07"
        done = call(grid, {"1": f"fail:{message}"})
        assert done.code == 1, done.err
        assert phases_seen(grid) == 3
        assert "[/__w/pytorch/pair.cc:553] Connection closed\\x1b]0;title\\x07" in done.out
        assert "\x1b" not in done.out

    def test_markup_in_a_category(self, tmp_path: Path, write_grid: WriteGrid) -> None:
        from tests.conftest import write_mvtec

        grid = write_grid(write_mvtec(tmp_path / "data", "[bold red]x"))
        assert "[bold red]x seed 0" in harness("plan", "--list", "--grid", grid).out

    def test_a_listener_that_raises(
        self, grid: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Beyond the list: whatever the screen or the file for `harness status` raises."""
        from typer.testing import CliRunner

        from harness.cli import app
        from harness.cli.screen import Screen

        def broken(*_: object) -> None:
            raise KeyError("broken")

        monkeypatch.setattr(Screen, "on_event", broken)
        monkeypatch.setattr(group, "WORKER", [WORKER])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        done = CliRunner().invoke(app, ["run", "--grid", str(grid), "--out", str(grid.parent / "runs")])
        assert done.exit_code == 0, done.output
        assert phases_seen(grid) == 3

    @pytest.mark.parametrize("words", [["plan", "--grid"], ["plan", "--list", "--grid"]])
    def test_other_commands_say_that_their_output_is_lost(self, grid: Path, words: list[str]) -> None:
        """Beyond the list: what prints and no more ends with one line."""
        with open("/dev/full", "w") as full:
            line = [sys.executable, "-m", "harness", *words, str(grid)]
            done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=LIMIT_S)
        assert done.returncode == 1
        assert done.stderr == "error: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("text", ["0/99999999999999999999", "9" * 5000 + "/1", "0/200000", "0/٣", "-1/2"])
def test_absurd_shards(text: str) -> None:
    """Beyond the list: a part of so many took all memory."""
    from dskd.config import ConfigError
    from harness.launch.schedule import parse_shard

    with pytest.raises(ConfigError, match=r"--shard: .* is not possible; write INDEX/COUNT") as caught:
        parse_shard(text)
    assert len(str(caught.value)) < 400


class TestProcesses:
    """Area C: processes, signals, claims."""

    def test_two_deaths_at_the_start_cost_a_slot(self, grid: Path, tmp_path: Path) -> None:
        (tmp_path / "count").write_text("1\n2\n")
        done = call(grid, {"count": str(tmp_path / "count")}, "--devices", "cpu:2")
        assert done.code == 0, done.out + done.err
        assert phases_seen(grid) == 3

    def test_no_slot_that_ever_lived_ends_the_grid_with_the_reason(self, grid: Path, tmp_path: Path) -> None:
        (tmp_path / "count").write_text("1\n2\n3\n4\n5\n6\n")
        done = call(grid, {"count": str(tmp_path / "count")})
        assert done.code == 1
        assert "was killed by SIGKILL" in done.out
        assert "the library cannot be loaded" in done.out

    def test_hangup_is_a_gentle_stop(self, grid: Path) -> None:
        process = subprocess.Popen(
            command(grid), env=environment({"0": "slow", "1": "slow", "2": "slow"}), stdout=subprocess.PIPE, text=True
        )
        until(lambda: phases_seen(grid))
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)  # a shell and the kernel both send it: it is never the second
        output = process.communicate(timeout=LIMIT_S)[0]
        assert process.returncode == 130
        assert "stopped at epoch 1" in output
        folder = grid.parent / "runs" / "tiny"
        assert not list(folder.glob("*/claim.json"))
        assert not list(folder.glob("shards/*"))

    def test_nohup_stays_deaf(self, grid: Path) -> None:
        process = subprocess.Popen(
            ["nohup", *command(grid)], env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        until(lambda: phases_seen(grid))
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0

    def test_claim_from_the_future(self, tmp_path: Path) -> None:
        first, second = Claims(tmp_path), Claims(tmp_path)
        assert first.take("run")
        os.utime(tmp_path / "run" / "claim.json", (time.time() + 3600,) * 2)
        assert second.take("run")

    @pytest.mark.parametrize("content", ["[1]", '{"pid": [1]}', '{"restart": "a", "job": "1"}', "[" * 100_000, "\x00"])
    def test_claim_that_is_none(self, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        write_atomic(tmp_path / "run" / "claim.json", content)
        claims = Claims(tmp_path)
        assert not claims.take("run")  # it may be written this moment
        os.utime(tmp_path / "run" / "claim.json", (0, 0))
        assert claims.take("run")

    def test_waiting_is_said(self, grid: Path) -> None:
        run_id = harness("plan", "--list", "--grid", grid, "--only", "seed=0").out.split()[0]
        claims = Claims(grid.parent / "runs" / "tiny")
        assert claims.take(run_id)
        process = subprocess.Popen(command(grid), env=environment({}), stdout=subprocess.PIPE, text=True)
        seen = ""
        while "waiting for" not in seen:
            seen = process.stdout.readline()
            assert seen
        assert f"{os.uname().nodename} (claim" in seen
        claims.release(run_id)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0

    def test_run_folder_that_cannot_be_used_costs_that_run(self, grid: Path) -> None:
        run_id = harness("plan", "--list", "--grid", grid, "--only", "seed=1").out.split()[0]
        folder = grid.parent / "runs" / "tiny"
        folder.mkdir(parents=True)
        (folder / run_id).write_text("not a folder")
        done = call(grid, {})
        assert done.code == 1
        assert done.out.count("✓ train") == 2
        assert "cannot be used (File exists); move it away" in done.out

    def test_long_log_costs_no_memory(self, grid: Path) -> None:
        line = command(grid, "--retries", "0", "--only", "seed=1")
        process = subprocess.Popen(line, env=environment({"1": "log"}), stdout=subprocess.DEVNULL)
        most_kib = 0
        while process.poll() is None:
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                most_kib = max(most_kib, int(found[1]) if found else 0)
            time.sleep(0.01)
        assert process.returncode == 1
        assert 0 < most_kib < 500 * 1024  # the log has 2 GiB

    def test_log_through_a_link(self, grid: Path, tmp_path: Path) -> None:
        from harness.launch import worker

        (tmp_path / "mine.txt").write_text("precious")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "mine.txt")
        saved = os.dup(1), os.dup(2)
        try:
            worker.log_to(tmp_path / "run" / "log.txt")
            os.write(1, b"line\n")
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        assert (tmp_path / "mine.txt").read_text() == "precious"
        assert (tmp_path / "run" / "log.txt").read_text() == "line\n"

    def test_long_folder_for_temporary_files(self, grid: Path, tmp_path: Path) -> None:
        """Area F or G: TMPDIR of 80 characters and more; a socket's path has 108 at most."""
        long = tmp_path / ("x" * 80)
        long.mkdir()
        assert call_apart(grid, TMPDIR=str(long)).returncode == 0


class TestChannel:
    """Area J: who knocks, and what workers say."""

    @pytest.mark.parametrize("host", ["localhost", None], ids=["tcp", "unix"])
    def test_a_silent_stranger_keeps_nobody_out(self, host: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(channel.Door(host)) as door:
            for key, value in door.environment().items():
                monkeypatch.setenv(key, value)
            monkeypatch.setenv(channel.GROUP, "ours")
            strangers = [_knock(door) for _ in range(3)]
            strangers[1].sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            worker = channel.connect()
            from multiprocessing.connection import wait

            assert wait([door], 10)
            connection, hello = door.take()
            assert hello["group"] == "ours"
            worker.send_bytes(events.encode(events.Ready()))
            assert channel.receive(connection) == events.Ready()
            for stranger in strangers:
                stranger.close()
            until(lambda: door.strangers == 3)

    def test_the_door_of_nodes_listens_on_one_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {"node7": "127.0.0.9", "node8": "127.0.1.1"}
        monkeypatch.setattr(socket, "gethostbyname", found.__getitem__)
        monkeypatch.setattr(
            channel.ipaddress.IPv4Address, "is_loopback", property(lambda self: str(self) != "127.0.0.9")
        )
        with closing(channel.Door("node7")) as door:
            assert door.environment()[channel.ADDRESS].startswith("tcp:127.0.0.9:")
        with closing(channel.Door("node8")) as door:  # a name that means the machine itself would reach no other
            assert door.environment()[channel.ADDRESS].startswith("tcp:node8:")

    @pytest.mark.parametrize(
        "content",
        [
            "\x00\xff no JSON",
            "{}",
            "[1]",
            '{"event": "step", "done": "a", "total": 0}',
            "[" * 100_000,
            '{"event": ["x"]}',
        ],
        ids=["no-json", "no-event", "a-list", "wrong-field", "too-deep", "odd-event"],
    )
    def test_a_message_that_is_no_event_ends_that_worker(self, grid: Path, content: str) -> None:
        done = call(grid, {"1": f"bytes:{content}"}, "--retries", "0")
        assert done.code == 1, done.err
        assert done.out.count("✓ train") == 2
        (failure,) = [item for item in Results(grid.parent / "runs" / "tiny") if isinstance(item, Failure)]
        assert failure.reason == "crashed"
        assert "sent a" in failure.message or "sent an event" in failure.message


def _knock(door: channel.Door) -> socket.socket:
    address = door.environment()[channel.ADDRESS]
    if address.startswith("tcp:"):
        _, host, port = address.split(":")
        return socket.create_connection((host, int(port)))
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(address)
    return stranger
