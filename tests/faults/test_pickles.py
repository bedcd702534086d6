"""DeepSpeed reads its checkpoints as pickles, which can run code: only those that nobody else could have written."""

import os
from pathlib import Path

import pytest
import torch

from harness.run.checkpoint import ShardedEngine


class Engine:
    """Writes and reads as DeepSpeed's does, as far as `ShardedEngine` sees."""

    global_steps = 3

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        pieces = Path(folder) / tag
        pieces.mkdir(parents=True)
        torch.save({"step": self.global_steps}, pieces / "model_states.pt")
        for path in (Path(folder), pieces, pieces / "model_states.pt"):
            path.chmod(0o777)  # as under a umask of 0

    def load_checkpoint(self, folder: str, tag: str) -> None:
        self.loaded.append(tag)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ShardedEngine, Engine, dict[str, str], Path]:
    engine = Engine()
    part = ShardedEngine(engine, tmp_path / "checkpoint.shards")
    state = part.state_dict()
    return part, engine, state, tmp_path / "checkpoint.shards" / state["tag"] / "model_states.pt"


def test_its_own_are_loaded_whatever_the_umask(saved) -> None:
    part, engine, state, _ = saved
    part.load_state_dict(state)
    assert engine.loaded == [state["tag"]]


@pytest.mark.parametrize("what", ["file", "folder", "owner", "link"])
def test_what_others_may_write_to_is_not(saved, what: str) -> None:
    part, engine, state, path = saved
    if what == "file":
        path.chmod(0o620)
    elif what == "folder":
        path.parent.chmod(0o702)
    elif what == "owner":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, -1)
    else:
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
    with pytest.raises(ValueError, match="is not this user's alone"):
        part.load_state_dict(state)
    assert not engine.loaded
