"""What `harness submit` makes of a plan, without SLURM and without a disk."""

import json
from dataclasses import replace
from pathlib import Path

from harness import schema
from harness.grid import Plan
from harness.launch import pace, slurm
from harness.launch.submission import Request, Submission, divide
from harness.run_folder import ResultsFolder
from harness.shapes import checker
from tests.launch.test_slurm import training

PACES = pace.prior("cpu")
REQUEST = Request("g.yaml", "runs", ["seed=1"], ["mine.py"], ["--retries", "3"], {}, "3", 60.0, 2)


def test_only_shards_with_something_left_are_submitted() -> None:
    plan = Plan([training(10 * (i + 1), i) for i in range(3)], [])
    ids = [run.spec.id for run in plan.trainings]
    work = divide(plan, {ids[2]}, PACES, REQUEST, workers=1)
    assert work is not None
    assert work.count == 3
    assert sorted(work.shards.values()) == sorted([[ids[0]], [ids[1]]])
    assert set(work.seconds) == set(ids[:2])
    assert work.longest.spec.id == ids[1]
    assert divide(plan, set(ids), PACES, REQUEST, workers=1) is None
    again = divide(plan, set(ids), PACES, replace(REQUEST, run_options=["--force"]), workers=1)
    assert again is not None
    assert sorted(again.seconds) == sorted(ids)


def test_the_journal_names_the_jobs_so_far_and_is_what_readers_expect() -> None:
    work = divide(Plan([training(10, i) for i in range(3)], []), set(), PACES, REQUEST, workers=1)
    assert work is not None
    arrays = slurm.arrays(work.shards, 2)  # 0 and 1, then 2
    folder = ResultsFolder(Path("/runs/tiny"))
    made = Submission("tiny", folder, "ab12", REQUEST, work, arrays, {}, "#!/bin/bash\nrun\n", "#!/bin/bash\nlast\n")
    for jobs in ([], ["7"], ["7", "8"]):
        document = json.loads(made.journal(jobs))
        assert not checker(schema.SUBMISSION)(document)
        assert [(job["id"], job["offset"]) for job in document["jobs"]] == [("7", 0), ("8", 2)][: len(jobs)]
    first, second = made.scripts()
    assert "#SBATCH --comment=harness-ab12-1\n" in second
    assert "export SHARD_OFFSET=2\n" in second
    assert "set -- g.yaml --only seed=1 --plugin mine.py --retries 3\n" in first
    assert "#SBATCH --dependency=afterany:7:8\n" in made.leaderboard(["7", "8"])
