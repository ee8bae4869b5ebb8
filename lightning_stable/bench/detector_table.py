# SPDX-License-Identifier: Apache-2.0
"""The tables of what detectors find: one detector a row, pairs of them, and what is promised of the default pair."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_stable.bench.detector_scores import Score, score, total
from lightning_stable.bench.labelled_curves import Curve

FALSE_ALARMS, SLOW_RECALL = 1.0, 0.85
"""Most false alarms per million healthy steps, and least share of slow divergences found, of a good pair."""

_BEST_PAIRS = 5
_TITLES = ["curves", "detonations", "slow", "after", "false/M", "outliers", "a shift"]
_LEGEND = """\
detonations: found within a step; slow: slow divergences found, after so many steps (median);
false/M: alarms per million healthy steps; outliers: single values called; a shift: alarms per change of level
"""


@dataclass
class Row:
    """One detector, and its alarms on every curve.

    Args:
        name: Of it.

    Example:
        >>> row = Row("nobody")
        >>> row.add("generated", Curve("a", np.zeros(4), []), np.array([False, True, False, False]))
        >>> row.totals()["generated"].false_alarms
        1
    """

    name: str
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    alarms: dict[str, list[NDArray[np.bool_]]] = field(default_factory=dict)

    def add(self, source: str, curve: Curve, alarms: NDArray[np.bool_]) -> None:
        """Note the alarms on one curve."""
        self.curves.setdefault(source, []).append(curve)
        self.alarms.setdefault(source, []).append(alarms)

    def totals(self) -> dict[str, Score]:
        """The score over all curves of each source."""
        return {
            source: total([score(*each) for each in zip(curves, self.alarms[source], strict=True)])
            for source, curves in self.curves.items()
        }

    def united(self, other: "Row") -> "Row":
        """Both detectors side by side, on the same curves."""
        both = {
            source: [mine | theirs for mine, theirs in zip(alarms, other.alarms[source], strict=True)]
            for source, alarms in self.alarms.items()
        }
        return Row(f"{self.name} + {other.name}", self.curves, both)


def table(rows: list[Row]) -> str:
    """One line for each detector and source.

    Args:
        rows: Of the detectors.

    Example:
        >>> print(table([Row("nobody")]).split()[0])
        Detectors
    """
    lines = [_line(row.name, source, found) for row in rows for source, found in row.totals().items()]
    return f"{_table('Detectors', lines)}\n{_LEGEND}"


def pair_table(rows: list[Row], point_rules: list[str], slow_rules: list[str]) -> str:
    """The best pairs of a point rule and a slow rule, over all curves.

    First come those that miss least of what is promised; among them, those with the fewest false alarms, and then those
    that are earliest. What is missed are shares: of the detonations, of the slow divergences, and powers of ten of the
    false alarms.

    Args:
        rows: Of the detectors.
        point_rules: Names of those that judge single values.
        slow_rules: Names of those that judge the level.

    Example:
        >>> print(pair_table([], [], [])[:14])
        The best pairs
    """
    known = {row.name: row for row in rows}
    pairs = [known[point].united(known[slow]) for point in point_rules for slow in slow_rules]
    found = sorted(((pair.name, _over_all(pair)) for pair in pairs), key=lambda each: _rank(each[1]))
    lines = [_line(name, "all", each) for name, each in found[:_BEST_PAIRS]]
    return f"{_table('The best pairs, over all curves', lines)}\n"


def goals(rows: list[Row], default_pair: str) -> str:
    """What is promised of the default pair, and whether it holds.

    Args:
        rows: Of the detectors.
        default_pair: The name of the pair.

    Example:
        >>> print(goals([Row("a pair")], "a pair").splitlines()[0])
          a pair: detonations missed                                                      0  <= 0     ok
    """
    found = _over_all(next(row for row in rows if row.name == default_pair))
    missed = found.detonations - found.found_detonations
    lines = [
        ("detonations missed", f"{missed}", "<= 0", missed <= 0),
        (
            "false alarms per million healthy steps",
            f"{found.false_alarms_per_million:.2f}",
            f"<= {FALSE_ALARMS:.2f}",
            found.false_alarms_per_million <= FALSE_ALARMS,
        ),
        (
            "slow divergences found",
            f"{found.slow_recall:.2f}",
            f">= {SLOW_RECALL:.2f}",
            found.slow_recall >= SLOW_RECALL,
        ),
    ]
    return "\n".join(
        f"  {f'{default_pair}: {what}':<75}{value:>6}  {bound:<8} {'ok' if holds else 'over'}"
        for what, value, bound, holds in lines
    )


def _over_all(row: Row) -> Score:
    return total(list(row.totals().values()))


def _rank(found: Score) -> tuple[float, float, float]:
    missed = (found.detonations - found.found_detonations) / max(1, found.detonations)
    unseen = max(0.0, SLOW_RECALL - found.slow_recall)
    false = max(0.0, math.log10(max(found.false_alarms_per_million, FALSE_ALARMS) / FALSE_ALARMS))
    return missed + unseen + false, found.false_alarms_per_million, found.median_slow_delay


def _table(title: str, lines: list[list[str]]) -> str:
    width = max(len(title), *(len(line[0]) for line in lines)) if lines else len(title)
    widths = [max(len(cell) for cell in column) for column in zip(_TITLES, *(line[1:] for line in lines), strict=True)]
    return "\n".join(
        f"{name:<{width}}  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        for name, *cells in [[title, *_TITLES], *lines]
    )


def _line(name: str, source: str, found: Score) -> list[str]:
    delay = f"{found.median_slow_delay:.0f}" if found.slow_delays else "-"
    return [
        name,
        source,
        f"{found.found_detonations} of {found.detonations}",
        f"{len(found.slow_delays)} of {found.slow_divergences}",
        delay,
        f"{found.false_alarms_per_million:.2f}",
        f"{found.called_outliers} of {found.outliers}",
        f"{found.shift_alarms / found.level_shifts:.1f}" if found.level_shifts else "-",
    ]
