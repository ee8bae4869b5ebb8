# SPDX-License-Identifier: Apache-2.0
"""The study's table: gaps, final losses, what was lost on the way, and what that says."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.report import markdown_table, mean_and_spread
from lightning_stable.studies.survival.gaps import LOST_ABOVE, Gap, gaps, is_lost, streams_of
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.studies.survival.streams import Stream

FULL, SKIP, ROLLBACK = "full", "guard_skip", "guard_rollback"


def survival_table(outcome: Outcome) -> str:
    """Everything below the question, as Markdown.

    Args:
        outcome: Of the study.

    Example:
        >>> survival_table(Outcome([], "loss"))
        'No run is complete.'
    """
    streams = streams_of(outcome)
    if not streams:
        return "No run is complete."
    bad = [stream for stream in streams if not stream.is_clean]
    by_stream = {stream: gaps(outcome, stream) for stream in bad}
    parts = [
        _settings(outcome, streams),
        f"A run is lost if its final loss is not finite or above {LOST_ABOVE:.2f} nats, that of guessing bytes; means "
        "and spreads are of the runs that are not lost. A run whose clean run is lost or failed has no reference, and "
        "no gap.",
        "## Gap of the final validation loss to the same side's clean run, in nats; the smallest in bold",
        _gap_table(outcome.sides, by_stream),
        "## Final validation loss, in nats",
        _table(outcome, streams, _final_loss),
        "## Optimizer steps whose work was thrown away, of "
        f"{streams[0].steps}, and the seconds that went into them and into starting again",
        _table(outcome, bad, _lost_work),
        "## What it says",
        "\n".join(f"- {line}" for line in verdicts(by_stream)),
        "## The sides",
        "\n".join(f"- **{SIDES[side].title}**: {SIDES[side].what}." for side in outcome.sides),
    ]
    return "\n\n".join(parts)


def verdicts(by_stream: dict[Stream, dict[str, Gap]]) -> list[str]:
    """What the gaps say of the full recipe, and of rollback against skip-only, stream by stream.

    A difference is *within the spread* if it is no larger than the larger of the two standard deviations over seeds.

    Args:
        by_stream: From stream and side to the gap.

    Example:
        >>> found = {"full": Gap({0: 0.02, 1: 0.04}), "clip": Gap({0: 0.1, 1: 0.1}), "adamw": Gap({}, 2)}
        >>> print(*verdicts({Stream("mixed", 0.05): found}))
        mixed, 5 %: the full recipe has the smallest gap, 0.030 ± 0.014; next is AdamW + global clip, 0.100 ± 0.000.
    """
    return [line for stream, found in by_stream.items() for line in _verdicts_on(stream, found)]


def _verdicts_on(stream: Stream, found: dict[str, Gap]) -> list[str]:
    lines = []
    ordered = _ordered(found)
    if FULL in found and len(ordered) > 1:
        full = found[FULL]
        place = ordered.index(FULL)
        other = ordered[1] if place == 0 else ordered[0]
        title, gap = SIDES[other].title, found[other]
        if place == 0:
            lines.append(f"{stream.title}: the full recipe has the smallest gap, {full}; next is {title}, {gap}.")
        else:
            difference = _difference(full, gap)
            lines.append(
                f"{stream.title}: the full recipe, {full}, is number {place + 1} of {len(ordered)}; {title} has the "
                f"smallest gap, {gap}{difference}."
            )
    if SKIP in found and ROLLBACK in found:
        rollback, skip = found[ROLLBACK], found[SKIP]
        worse = rollback.mean - skip.mean > max(rollback.spread, skip.spread) or rollback.lost > skip.lost
        is_equal = rollback == skip
        word = "is exactly" if is_equal else "is worse than" if worse else "is within the spread of"
        lines.append(f"{stream.title}: rollback {word} skip-only" + ("." if is_equal else f", {rollback} to {skip}."))
    return lines


def _ordered(found: dict[str, Gap]) -> list[str]:
    return sorted(found, key=lambda side: found[side].order)


def _difference(full: Gap, best: Gap) -> str:
    if full.lost > best.lost:
        return f", with {full.lost - best.lost} fewer of its runs lost"
    if min(len(full.survived), len(best.survived)) < 2:
        return ""  # one seed has no spread
    is_within = full.mean - best.mean <= max(full.spread, best.spread)
    return ", a difference within the spread" if is_within else ", a difference beyond the spread"


def _settings(outcome: Outcome, streams: Sequence[Stream]) -> str:
    lost = sum(is_lost(result.numbers.get("loss", math.nan)) for result in outcome.results)
    return (
        f"One epoch of {streams[0].steps} batches, each one optimizer step. Every side has the same batches in the same"
        " order, the same bad ones among them, the same first weights, and the same schedule: a warm-up over a"
        f" tenth of the stream, then REX to its end. {len(outcome.results)} runs, {lost} of them lost."
    )


def _gap_table(sides: Sequence[str], by_stream: dict[Stream, dict[str, Gap]]) -> str:
    best = {stream: _ordered(found)[0] for stream, found in by_stream.items() if found}

    def cell(side: str, stream: Stream) -> str:
        gap = by_stream[stream].get(side)
        text = "" if gap is None else str(gap)
        return f"**{text}**" if best.get(stream) == side else text

    rows = [[SIDES[side].title, *(cell(side, stream) for stream in by_stream)] for side in sides]
    return markdown_table(["side", *(stream.title for stream in by_stream)], rows)


def _table(outcome: Outcome, streams: Sequence[Stream], cell: Callable[[Outcome, str, Stream], str]) -> str:
    rows = [[SIDES[side].title, *(cell(outcome, side, stream) for stream in streams)] for side in outcome.sides]
    return markdown_table(["side", *(stream.title for stream in streams)], rows)


def _final_loss(outcome: Outcome, side: str, stream: Stream) -> str:
    found = outcome.cell(side, stream.point)
    if found is None:
        return ""
    losses = found.values("loss")
    survived = {seed: loss for seed, loss in enumerate(losses) if not is_lost(loss)}
    early = sum(value == 1.0 for value in found.values("ended_early"))
    return str(Gap(survived, len(losses) - len(survived))) + (
        f", ended early {early} of {len(losses)}" if early else ""
    )


def _lost_work(outcome: Outcome, side: str, stream: Stream) -> str:
    found = outcome.cell(side, stream.point)
    if found is None:
        return ""
    steps, seconds = found.values("steps_lost"), found.values("seconds_lost")
    if not any(steps):
        return "0"
    return f"{mean_and_spread(fmean(steps), found.spread('steps_lost'), 0)}; {fmean(seconds):.1f} s"
