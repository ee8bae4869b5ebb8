# SPDX-License-Identifier: Apache-2.0
"""The study's table: gaps, final losses, what was lost on the way, and what that says."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.report import markdown_table, mean_and_spread
from lightning_stable.studies.survival.gaps import LOST_ABOVE, Gap, gaps, is_lost, streams_of
from lightning_stable.studies.survival.run_numbers import Size, reset_interval, reset_warmup, warmup_steps
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.studies.survival.streams import Stream
from lightning_stable.studies.survival.verdicts import verdict_table


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
        verdict_table(by_stream),
        "## The sides",
        "\n".join(f"- **{SIDES[side].title}**: {SIDES[side].what}." for side in outcome.sides),
    ]
    return "\n\n".join(parts)


def _settings(outcome: Outcome, streams: Sequence[Stream]) -> str:
    lost = sum(is_lost(result.numbers.get("loss", math.nan)) for result in outcome.results)
    steps = streams[0].steps
    return (
        f"One epoch of {steps} batches, each one optimizer step. Every side has the same batches in the same order, the"
        " same bad ones among them, the same first weights, and the same schedule."
        f" {len(outcome.results)} runs, {lost} of them lost.\n\n{_numbers(steps)}"
    )


def _numbers(steps: int) -> str:
    """What all sides have in common, and where that is not as in the recipes that they are named after."""
    size = Size()
    return (
        f"The model has {size.n_layer} blocks of {size.d_model} channels, {size.context} bytes of context and"
        f" {size.batch_size} samples a batch. The learning rate warms up over {warmup_steps(steps)} steps to"
        f" {size.lr:g}, then falls by REX to the end; who resets momentum does so every {reset_interval(steps)} steps,"
        f" with {reset_warmup(steps)} of warm-up but for Stable-SPAM. Only detectors and thresholds are those of the"
        " recipes `charlm_...`; these have 3 blocks of 96 channels, a learning rate of 0.003, which is constant but in"
        " `charlm_stable`, 800 steps, and a reset every 250 (`charlm_stable_spam`: 500). The ladder of the full recipe"
        " is that of a guard without arguments: ten skips, two rollbacks without replay, two halvings of the learning"
        " rate, a halt, all of it available again after five clean steps."
    )


def _gap_table(sides: Sequence[str], by_stream: dict[Stream, dict[str, Gap]]) -> str:
    best = {stream: min(gap.order for gap in found.values()) for stream, found in by_stream.items() if found}

    def cell(side: str, stream: Stream) -> str:
        gap = by_stream[stream].get(side)
        if gap is None:
            return ""
        return f"**{gap}**" if gap.survived and gap.order == best[stream] else str(gap)

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
