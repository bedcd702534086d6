"""The verdict: from cells to sentences, one wording for terminal, Markdown, comparison and page. Pure.

A method leads where the 95 % intervals of its paired differences from all others exclude 0; the others that do not are
not told apart from it. Our choice of words; how the intervals are made: docs/leaderboard.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.leaderboard.statistics import LEAST_CATEGORIES, STEADY_SEEDS, Interval
from harness.text import number_of

MOST_NAMED = 3  # methods or data sets in a sentence; the others are counted
MOST_CAUTIONS = 3  # in the line of cautions; the others are behind --why


@dataclass(frozen=True)
class Rival:
    """A method that is not the first, with its mean (a share), and the first's minus its own where both were paired.

    Attributes:
        interval: of the difference, 95 %; None where there is nothing to tell.
        lower: by a metric of which the lowest is the best.
    """

    name: str
    value: float
    difference: float | None = None
    interval: Interval | None = None
    lower: bool = False

    @property
    def is_behind(self) -> bool:
        """Beyond noise."""
        if self.interval is None:
            return False
        return self.interval[1] < 0 if self.lower else self.interval[0] > 0


@dataclass(frozen=True)
class Contest:
    """Methods on one data set by one metric.

    Attributes:
        metric: its title.
        first: the method with the best mean (`value`, a share) of those that have all runs, empty where none has;
            `rivals`: the others, best first; `left_out`: those of which runs are missing.
        categories, seeds: so many; runs: of all methods, of which so many `collapsed`.
    """

    dataset: str
    metric: str
    first: str
    value: float
    rivals: tuple[Rival, ...]
    categories: int
    seeds: int
    runs: int
    collapsed: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def tied(self) -> tuple[Rival, ...]:
        """Those that are not told apart from the first."""
        return tuple(rival for rival in self.rivals if not rival.is_behind)

    @property
    def says_nothing(self) -> bool:
        return not self.first or 0 < self.runs == self.collapsed

    @property
    def leader(self) -> str | None:
        """The method that leads beyond noise; None where none does."""
        return self.first if self.rivals and not self.tied and not self.says_nothing else None


@dataclass(frozen=True)
class Doubts:
    """What weighs against a verdict, counted.

    Attributes:
        random: of the rows so many have a random teacher, of `rows`.
        missing: of `expected` runs; failed: of these; disturbed: of `measured` throughput measurements.
    """

    rows: int = 1
    random: int = 0
    expected: int = 0
    missing: int = 0
    failed: int = 0
    collapsed: int = 0
    measured: int = 0
    disturbed: int = 0
    seeds: int = STEADY_SEEDS
    categories: int = LEAST_CATEGORIES


@dataclass(frozen=True)
class Verdict:
    """`lines`: three at most; `why`: what else there is to know."""

    lines: list[str]
    why: list[str]


def verdict(contests: Sequence[Contest], doubts: Doubts, notes: Iterable[str] = ()) -> Verdict:
    """Args: contests: of each data set by each metric, the leading metric of a data set first; notes: for `why`."""
    main = list({contest.dataset: contest for contest in reversed(contests)}.values())[::-1]
    others = [contest for contest in contests if contest not in main]
    lines, why = [], []
    if len(main) == 1:
        lines.append(sentence(main[0]))
        said = by_other_metrics(main[0], others)
        lines += [said] if said else []
    elif main:
        lines.append(over_all(main))
        why += [line for each in main for line in (sentence(each), by_other_metrics(each, others)) if line]
    found = cautions(doubts)
    if found:
        lines.append("Caution: " + "; ".join(found[:MOST_CAUTIONS]) + ".")
        why += [f"{line[0].upper()}{line[1:]}." for line in found[MOST_CAUTIONS:]]
    why += [sentence(each) for each in others]
    return Verdict(lines, [*why, *notes])


def sentence(contest: Contest) -> str:
    """Who leads on the data set, by how much, against whom, beyond noise or not, over how much."""
    where, first = f"on {contest.dataset}", contest.first
    over = f"{number_of(contest.categories, 'category', 'categories')}, {number_of(contest.seeds, 'seed')}"
    if contest.says_nothing:
        why = f"all {contest.runs} runs collapsed" if first else f"runs are missing of {_listed(contest.left_out)}"
        return f"Nothing can be said {where}: {why}."
    score = f"{contest.metric} {_share(contest.value)}"
    if not contest.rivals:
        why = f"runs are missing of {_listed(contest.left_out)}" if contest.left_out else "there is no other method"
        return f"{first} has {score} {where} ({over}), with nothing to compare it with: {why}."
    if not contest.tied:
        nearest = contest.rivals[0]
        lead = f"{_lead(nearest)} over {nearest.name}"
        return f"{first} leads {where} beyond noise: {score}, {lead} ({over}).{_others(contest)}"
    tied = contest.tied
    names = _listed([first, *(rival.name for rival in tied)])
    if all(rival.value == contest.value for rival in tied):
        return f"No leader {where}: {names} are equal, {score} ({over}).{_others(contest)}"
    if all(rival.interval is None for rival in tied):
        lead = f"{_lead(tied[0])} over {tied[0].name}" if tied[0].difference is not None else f"before {tied[0].name}"
        return f"{first} is first {where}, {score}, {lead}, but nothing tells it from luck ({over}).{_others(contest)}"
    told = next(rival for rival in tied if rival.interval is not None)
    lead = f"{first} {_share(contest.value)}, {_lead(told)} over {told.name}"
    return (
        f"No clear leader {where}: {names} are not told apart by {contest.metric} ({lead}; {over}).{_others(contest)}"
    )


def by_other_metrics(main: Contest, others: Iterable[Contest]) -> str:
    """What other metrics of the data set say otherwise; empty where they say the same."""
    own = [each for each in others if each.dataset == main.dataset and not each.says_nothing and each.rivals]
    parts = []
    leads: dict[str, list[str]] = {}
    for each in own:
        if each.leader not in (None, main.leader):
            leads.setdefault(str(each.leader), []).append(each.metric)
    for leader, metrics in leads.items():
        parts.append(f"by {_listed(metrics)} {leader} leads{' instead' if main.leader else ''}, beyond noise")
    unclear = [each.metric for each in own if each.leader is None]
    if main.leader and unclear:
        parts.append(f"by {_listed(unclear)} there is no clear leader")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def over_all(contests: Sequence[Contest]) -> str:
    """One sentence for several data sets."""
    count = len(contests)
    contests = [each for each in contests if not each.says_nothing]
    if not contests:
        return f"Nothing can be said on any of {count} data sets: runs collapsed or are missing."
    best = [{each.first, *(rival.name for rival in each.tied)} for each in contests]
    never_behind = [name for name in dict.fromkeys(each.first for each in contests) if all(name in own for own in best)]
    led = {name: [each.dataset for each in contests if each.leader == name] for name in never_behind}
    over = f"Over {count} data sets"
    if all(not each.rivals for each in contests):
        return f"{over}: there is no other method to compare {contests[0].first} with."
    winners = [name for name in never_behind if led[name]]
    if len(winners) == 1:
        name, own = winners[0], led[winners[0]]
        if len(own) == count:
            return f"{over} {name} leads: beyond noise on each."
        rest = [each.dataset for each in contests if each.dataset not in own]
        tail = f" and not told apart from the best on {_listed(rest)}" if rest else ""
        return f"{over} {name} leads: beyond noise on {_listed(own)}{tail}."
    said = [
        f"{each.leader} leads on {each.dataset} ({_lead(each.rivals[0])} over {each.rivals[0].name})"
        for each in contests
        if each.leader
    ]
    if not said:
        return f"{over} there is no clear leader: on none of them is a method ahead beyond noise."
    return f"{over} there is no one leader, beyond noise: {_listed(said)}."


def cautions(doubts: Doubts) -> list[str]:
    """In order of weight, each without a full stop."""
    lines = []
    if doubts.random:
        all_of_them = "" if doubts.random == doubts.rows else f" in {doubts.random} of {doubts.rows} rows"
        lines.append(f"the teacher is random{all_of_them}, which says little of methods under a trained one")
    if doubts.collapsed:
        lines.append(f"{doubts.collapsed} of {doubts.expected - doubts.missing} runs collapsed")
    if doubts.missing:
        failed = f" ({doubts.failed} failed)" if doubts.failed else ""
        lines.append(f"{doubts.missing} of {doubts.expected} runs missing{failed}")
    elif doubts.failed:
        lines.append(f"{number_of(doubts.failed, 'further run')} failed")
    if doubts.disturbed:
        lines.append(f"{doubts.disturbed} of {doubts.measured} speeds were measured while others used the machine")
    return lines + few(doubts.seeds, doubts.categories)


def few(seeds: int, categories: int = LEAST_CATEGORIES) -> list[str]:
    """What so few seeds or categories cannot say; empty where there are enough."""
    lines = []
    if seeds < 2:
        lines.append("one seed cannot tell a method's lead from luck")
    elif seeds < STEADY_SEEDS:
        lines.append(f"{seeds} seeds are few: treat every ± and interval as a rough guess, use {STEADY_SEEDS} or more")
    if categories < LEAST_CATEGORIES:
        lines.append(f"a significance test over categories needs {LEAST_CATEGORIES} or more, here is {categories}")
    return lines


def of_comparison(runs: int, identical: int, differences: Sequence[tuple[str, float, int]]) -> list[str]:
    """What is said of two sets of runs.

    Args:
        runs: so many are in both, of which so many are `identical` by every metric to the last digit.
        differences: of what, by how much (a share) and 1, -1 or 0: better, worse or within noise.
    """
    if runs == identical:
        return [f"{identical} of {runs} runs identical."]
    better, worse = ([(what, by) for what, by, sign in differences if sign == wanted] for wanted in (1, -1))
    parts = [
        f"{word} beyond noise: " + _listed([f"{what} ({100 * by:+.1f} points)" for what, by in found])
        for word, found in (("better", better), ("worse", worse))
        if found
    ]
    rest = len(differences) - len(better) - len(worse)
    if parts and rest:
        parts.append(f"within noise: {rest} of {len(differences)} comparisons")
    text = "; ".join(parts) or f"nothing differs beyond noise in {number_of(len(differences), 'comparison')}"
    return [f"{text[0].upper()}{text[1:]}.", f"{identical} of {runs} runs identical."][: 2 if identical else 1]


def _others(contest: Contest) -> str:
    names = [rival.name for rival in contest.rivals if rival.is_behind]
    text = f" Behind beyond noise: {_listed(names)}." if names and contest.tied else ""
    return text + (f" Left out, as runs are missing: {_listed(contest.left_out)}." if contest.left_out else "")


def _lead(rival: Rival) -> str:
    text = f"{100 * (rival.difference or 0):+.1f}"
    if rival.interval is not None:
        text += f" [{100 * rival.interval[0]:+.1f}, {100 * rival.interval[1]:+.1f}]"
    return f"{text} points"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`, `a, b, c and 4 more`"""
    shown = list(names[:MOST_NAMED]) if len(names) > MOST_NAMED + 1 else list(names)
    if len(shown) < len(names):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
