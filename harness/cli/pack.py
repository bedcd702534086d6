"""`harness pack`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError
from harness.cli.common import PluginOption, console
from harness.cli.find import ModelArgument, RunsOption, WeightsOption, model_path


def pack(
    run: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.", show_default=False)],
    runs: RunsOption = Path("runs"),
    weights: WeightsOption = None,
    plugin: PluginOption = None,
) -> None:
    """Pack a finished run into one file, from which it predicts on any machine, without its results folder.

    The file holds the teacher, the students, the preprocessing, the thresholds with the scores that they were made
    from, and where all of it comes from, with the licences of weights and data. It is a safetensors file with JSON in
    its header, so loading it runs no code; `dskd.load(FILE)` and `harness predict FILE` take it.
    """
    from harness import plugins
    from harness.predict.model import load

    plugins.load(plugin or ())
    model = load(model_path(run, runs), weights, "cpu")
    try:
        model.pack(out)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror or error}); name another file") from None
    terminal, licences = console(), model.about["licences"]
    terminal.print(f"{out}  {out.stat().st_size / 2**20:.1f} MiB  {model.about['name']}", soft_wrap=True)
    at = "none" if model.threshold is None else f"{model.threshold:.6g} for a false alarm rate of {model.rate:g}"
    terminal.print(f"threshold: {at}", soft_wrap=True)
    terminal.print(f"licences: weights: {licences['weights']}; data: {licences['data']}", soft_wrap=True)
