# SPDX-License-Identifier: Apache-2.0
"""What the gaps say of the full recipe and of rollback, in one table and by one rule."""

from collections.abc import Mapping
from statistics import fmean, stdev

from lightning_stable.studies.engine.report import markdown_table
from lightning_stable.studies.survival.gaps import Gap
from lightning_stable.studies.survival.sides import FULL, ROLLBACK, SIDES, SKIP
from lightning_stable.studies.survival.streams import Stream

RULE = (
    "A difference is taken seed by seed, gap minus gap: its mean and its standard deviation over the seeds in which "
    "both sides have a gap. It is called better or worse where the mean is larger than that standard deviation, else "
    "within the spread; which describes these seeds, and is no test of significance. Where one side has more runs "
    "without a gap, that alone decides; of fewer than two seeds nothing is said. The smallest gap of the others "
    "is picked out of the same runs, and so flatters its side a little."
)
"""How `compare` judges, as the table says it."""


def verdict_table(by_stream: Mapping[Stream, Mapping[str, Gap]]) -> str:
    """A row for each stream: where the full recipe stands, and what going back is worth beside leaving out.

    Args:
        by_stream: From stream and side to the gap.

    Example:
        >>> found = {"full": Gap({0: 0.02, 1: 0.04}), "clip": Gap({0: 0.1, 1: 0.1}), "adamw": Gap({}, lost=2)}
        >>> print(verdict_table({Stream("mixed", 0.05): found}).splitlines()[-1])
        | mixed, 5 % | 1 of 3 | AdamW + global clip, 0.100 ± 0.000 | -0.070 ± 0.014, better |  |
    """
    titles = [
        "stream",
        "place of the full recipe",
        "smallest gap of the others",
        "full recipe against it",
        "rollback against skip",
    ]
    rows = [[stream.title, *_full(found), _pair(found, ROLLBACK, SKIP)] for stream, found in by_stream.items()]
    return f"{RULE}\n\n{markdown_table(titles, rows)}"


def compare(one: Gap, other: Gap) -> str:
    """How one side's gap is to that of another.

    Args:
        one: Of whom it is said.
        other: To whom it is compared.

    Example:
        >>> compare(Gap({0: 0.30, 1: 0.34}), Gap({0: 0.10, 1: 0.12})), compare(Gap({0: 0.1}), Gap({}, lost=1))
        ('+0.210 ± 0.014, worse', 'better: 1 run fewer without a gap')
        >>> compare(Gap({0: 0.1}), Gap({0: 0.2}))
        'no verdict: 1 seed'
    """
    if one.without != other.without:
        return _by_count(one.without - other.without)
    if one.survived and one == other:
        return "exactly the same"
    differences = [gap - other.survived[seed] for seed, gap in one.survived.items() if seed in other.survived]
    if len(differences) < 2:
        return f"no verdict: {len(differences)} seed{'' if len(differences) == 1 else 's'}"
    mean, spread = fmean(differences), stdev(differences)
    verdict = "within the spread" if abs(mean) <= spread else "worse" if mean > 0 else "better"
    return f"{round(mean, 3) + 0.0:+.3f} ± {spread:.3f}, {verdict}"  # + 0.0: no -0.000


def _full(found: Mapping[str, Gap]) -> list[str]:
    others = {side: gap for side, gap in found.items() if side != FULL}
    if FULL not in found or not others:
        return ["", "", ""]
    full = found[FULL]
    place = 1 + sum(gap.order < full.order for gap in others.values())
    best = min(others, key=lambda side: others[side].order)
    return [f"{place} of {len(found)}", f"{SIDES[best].title}, {others[best]}", compare(full, others[best])]


def _pair(found: Mapping[str, Gap], one: str, other: str) -> str:
    return compare(found[one], found[other]) if one in found and other in found else ""


def _by_count(more: int) -> str:
    runs = f"{abs(more)} run{'' if abs(more) == 1 else 's'}"
    return f"worse: {runs} more without a gap" if more > 0 else f"better: {runs} fewer without a gap"
