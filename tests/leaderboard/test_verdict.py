"""The verdict, sentence by sentence: who leads, how surely, and what speaks against it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dskd.config import replace as changed
from dskd.methods import get_method
from harness.leaderboard.frame import load
from harness.leaderboard.render import to_json
from harness.leaderboard.sections import make_sections
from harness.leaderboard.table import boards
from harness.leaderboard.verdict import Contest, Doubts, Rival, cautions, of_comparison, verdict
from harness.records import Results
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights
from tests.leaderboard.synthetic import DEVICE, publish

AHEAD = Rival("stfpm", 0.85, 0.025, (0.003, 0.04))
MTD = Contest("mtd", "image AUROC", "dskd", 0.875, (AHEAD,), categories=1, seeds=3, runs=6)
SURE = Doubts()


def said(contest: Contest, **changes: object) -> str:
    (line,) = verdict([replace(contest, **changes)], SURE).lines
    return line


def test_one_contest_in_one_sentence() -> None:
    assert said(MTD) == (
        "dskd leads on mtd beyond noise: image AUROC 87.5 %, +2.5 [+0.3, +4.0] points over stfpm (1 category, 3 seeds)."
    )
    touching = replace(AHEAD, interval=(0.0, 0.05))
    assert said(MTD, rivals=(touching,)) == (
        "No clear leader on mtd: dskd and stfpm are not told apart by image AUROC (dskd 87.5 %, +2.5 [+0.0, +5.0] "
        "points over stfpm; 1 category, 3 seeds)."
    )
    third = Rival("rd", 0.6, 0.275, (0.2, 0.3))
    assert said(MTD, rivals=(touching, third)).endswith("3 seeds). Behind beyond noise: rd.")
    assert said(MTD, rivals=()) == (
        "dskd has image AUROC 87.5 % on mtd (1 category, 3 seeds), with nothing to compare it with: there is no other "
        "method."
    )
    assert said(MTD, rivals=(), left_out=("stfpm",)).endswith("to compare it with: runs are missing of stfpm.")
    assert said(MTD, left_out=("rd",)).endswith("3 seeds). Left out, as runs are missing: rd.")
    none_whole = said(MTD, first="", rivals=(), left_out=("a", "b"))
    assert none_whole == "Nothing can be said on mtd: runs are missing of a and b."
    same = Rival("stfpm", 0.875, 0.0, (0.0, 0.0))
    assert said(MTD, rivals=(same,)) == (
        "No leader on mtd: dskd and stfpm are equal, image AUROC 87.5 % (1 category, 3 seeds)."
    )
    alone = replace(AHEAD, interval=None)
    assert said(MTD, rivals=(alone,), seeds=1) == (
        "dskd is first on mtd, image AUROC 87.5 %, +2.5 points over stfpm, but nothing tells it from luck "
        "(1 category, 1 seed)."
    )
    assert said(MTD, collapsed=6) == "Nothing can be said on mtd: all 6 runs collapsed."
    many = tuple(replace(touching, name=name) for name in "abcde")
    assert "dskd, a, b and 3 more are not told apart" in said(MTD, rivals=many)


def test_other_metrics_that_say_otherwise_are_told() -> None:
    pixel = replace(MTD, metric="pixel AUROC")
    unclear = replace(pixel, rivals=(replace(AHEAD, interval=(-0.01, 0.05)),))
    assert verdict([MTD, pixel], SURE).lines == [said(MTD)]
    assert verdict([MTD, unclear], SURE).lines == [said(MTD), "By pixel AUROC there is no clear leader."]
    other = replace(pixel, first="stfpm", rivals=(replace(AHEAD, name="dskd"),))
    assert verdict([MTD, other], SURE).lines[1] == "By pixel AUROC stfpm leads instead, beyond noise."
    tied = replace(unclear, metric="image AUROC")
    assert verdict([tied, other], SURE).lines[1] == "By pixel AUROC stfpm leads, beyond noise."


def test_several_data_sets_have_one_sentence_over_all_and_their_own_behind() -> None:
    goods = replace(MTD, dataset="goods")
    unclear = replace(goods, rivals=(replace(AHEAD, interval=(-0.01, 0.05)),))
    other = replace(goods, first="stfpm", rivals=(replace(AHEAD, name="dskd"),))
    for second, line in (
        (goods, "Over 2 data sets dskd leads: beyond noise on each."),
        (unclear, "Over 2 data sets dskd leads: beyond noise on mtd and not told apart from the best on goods."),
        (
            other,
            "Over 2 data sets there is no one leader, beyond noise: dskd leads on mtd (+2.5 [+0.3, +4.0] points over "
            "stfpm) and stfpm leads on goods (+2.5 [+0.3, +4.0] points over dskd).",
        ),
    ):
        found = verdict([MTD, second], SURE)
        assert found.lines == [line]
        assert found.why == [said(MTD), said(second)]
    nobody = [replace(unclear, dataset=name) for name in ("a", "b", "c")]
    assert verdict(nobody, SURE).lines == [
        "Over 3 data sets there is no clear leader: on none of them is a method ahead beyond noise."
    ]
    dead = [replace(each, collapsed=each.runs) for each in nobody]
    assert verdict(dead, SURE).lines == ["Nothing can be said on any of 3 data sets: runs collapsed or are missing."]


def test_cautions_by_weight_and_at_most_three_lines() -> None:
    all_of_them = Doubts(2, 2, 24, 3, 2, 16, 2, 1, 3, 1)
    assert cautions(all_of_them) == [
        "the teacher is random, which says little of methods under a trained one",
        "16 of 21 runs collapsed",
        "3 of 24 runs missing (2 failed)",
        "1 of 2 speeds were measured while others used the machine",
        "3 seeds are few: treat every ± and interval as a rough guess, use 5 or more",
        "a significance test over categories needs 6 or more, here is 1",
    ]
    assert cautions(Doubts(seeds=1)) == ["one seed cannot tell a method's lead from luck"]
    assert cautions(SURE) == []
    unclear = replace(MTD, metric="pixel AUROC", rivals=(replace(AHEAD, interval=(-0.01, 0.05)),))
    found = verdict([MTD, unclear], all_of_them)
    assert len(found.lines) == 3
    assert found.lines[2].startswith("Caution: the teacher is random,")
    assert found.lines[2].endswith("3 of 24 runs missing (2 failed).")
    assert found.why[0] == "1 of 2 speeds were measured while others used the machine."


def test_two_sets_of_runs() -> None:
    assert of_comparison(9, 9, [("a", 0.0, 0)]) == ["9 of 9 runs identical."]
    assert of_comparison(9, 0, [("a by b", 0.012, 1), ("c", -0.02, -1), ("d", 0.001, 0)]) == [
        "Better beyond noise: a by b (+1.2 points); worse beyond noise: c (-2.0 points); within noise: 1 of 3 "
        "comparisons."
    ]
    assert of_comparison(9, 2, [("a", 0.012, 0)]) == [
        "Nothing differs beyond noise in 1 comparison.",
        "2 of 9 runs identical.",
    ]


@pytest.fixture
def variants(tmp_path: Path) -> Results:
    """Two methods, each with its own map and two other ones, of which the own one is the worst."""
    results = Results(tmp_path / "runs")
    for name, lead in (("dskd", 0.2), ("stfpm", 0.0)):
        method = get_method(name)
        for seed in range(5):
            train = TrainSpec(method, "resnet18", Weights("imagenet", "ab" * 32), Data("set", "a", "m"), seed, 64)
            for place, sigma in enumerate((method.map.sigma, 1.5, 2.5)):
                spec = EvaluateSpec(train, changed(method.map, {"sigma": sigma}), label="sharp" if place == 1 else "")
                value = 0.6 + lead + 0.01 * seed + 0.05 * place
                publish(results, spec, {"image_auroc": value, "pixel_auroc": value, "degenerate": False, **DEVICE})
    return results


def test_variants_of_evaluation_fold_under_their_method(variants: Results) -> None:
    found = load([variants.folder])
    (section,) = make_sections(boards(found))
    (table,) = section.tables
    assert [key for key, _ in table.rows] == [("dskd", "resnet18"), ("stfpm", "resnet18")]
    assert table.rows[0][1]["set.image_auroc"].value == pytest.approx(0.82)
    assert table.notes[-1].startswith("4 variants of evaluation folded (--variants shows them): to choose one by these")
    assert section.verdict.lines[0].startswith("dskd leads on set beyond noise: image AUROC 82.0 %, +20.0 [")
    (opened,) = boards(found, open_variants=True)
    assert sorted(set(opened.lines["variant"])) == ["", "map.sigma=2.5", "sharp"]
    (chosen,) = boards(found, where=["map.sigma=2.5"])
    assert len(chosen.parts()) == 2
    document = json.loads(to_json([section]))["sections"][0]
    assert document["shared"]["image_size"] == 64
    assert document["shared"]["crop"] == 0
    assert document["verdict"]["lines"] == section.verdict.lines
