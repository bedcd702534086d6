"""The README's section "On a cluster", command by command as it stands there."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster, evaluations, metrics, write
from tests.test_docs import ON_A_CLUSTER, blocks

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_readme_on_a_cluster(cluster: Cluster, tmp_path: Path, images: Path) -> None:
    write(tmp_path / "grid.yaml", images, epochs=1, seeds=3)
    write(tmp_path / "large.yaml", images, epochs=1, seeds=1, processes=2)
    (block,) = blocks("console", ON_A_CLUSTER)
    commands = [line.removeprefix("$ ").split("  #")[0].strip() for line in block.splitlines()]
    assert len(commands) == 6
    done: dict[str, object] = {}
    for command in commands:
        ran = subprocess.run(
            command, shell=True, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=240
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}{cluster.output(tmp_path)}"
        if command.startswith("sbatch"):
            job = ran.stdout.split()[-1]
            assert cluster.wait(job) == {"COMPLETED"}, command + cluster.output(tmp_path)
        if command.startswith("harness status"):
            done = metrics(tmp_path / "runs" / "tiles")
    assert len(done) == 3
    found = evaluations(tmp_path / "runs" / "tiles")
    assert len(found) == 4
    assert {key: value for key, value in metrics(tmp_path / "runs" / "tiles").items() if key in done} == done
    assert sorted(record.spec["train"]["processes"] for record in found.values()) == [1, 1, 1, 2]
