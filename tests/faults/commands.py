"""A command of `harness` in process, as a shell sees it: exit code, standard output and standard error."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from harness.cli import main


@dataclass
class Done:
    code: int
    out: str
    err: str


def harness(*arguments: object) -> Done:
    """Exceptions that no command may let out are let out here too."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["harness", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Done(code, out.getvalue(), err.getvalue())


def refusal(*arguments: object) -> str:
    """The one line of a command that refuses what it was given."""
    done = harness(*arguments)
    assert done.code == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert len(done.err) <= 1500, done.err
    return done.err.removeprefix("error: ").rstrip("\n")
