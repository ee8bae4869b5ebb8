# SPDX-License-Identifier: Apache-2.0
"""Loss curves in which it is known what happened where: generated ones, and real ones from a folder."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = np.random.Generator

LENGTH = 50_000
"""Steps of a generated curve."""

DETONATION, SLOW_DIVERGENCE, OUTLIER, LEVEL_SHIFT = "detonation", "slow divergence", "outlier", "level shift"
_SETTLES = 5000  # steps after a change of level before the new one counts as healthy
_FADES = 500  # steps after an outlier that the file's labels say recovers; a generated one is over at once
_EARLIEST = 100  # first step at which a run may detonate
_LABELLED_FROM = 3000  # nobody has labelled what happened in a real run's warm-up


@dataclass(frozen=True)
class Event:
    """What happened, from an index up to but not including another one: there, alarms are not false ones.

    Args:
        kind: `DETONATION`, `SLOW_DIVERGENCE`, `OUTLIER`, `LEVEL_SHIFT`, or another word that nothing is counted of.
        start: Index of the first value that shows it.
        end: Index of the first value that is healthy again.

    Example:
        >>> Event(OUTLIER, 7, 8).kind
        'outlier'
    """

    kind: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve and what happened in it.

    Args:
        name: Of the run, or the kind of generated curve.
        values: One per step.
        events: In any order.

    Example:
        >>> int(Curve("a", np.zeros(10), [Event(OUTLIER, 7, 8)]).healthy.sum())
        9
    """

    name: str
    values: NDArray[np.float64]
    events: list[Event]

    @property
    def healthy(self) -> NDArray[np.bool_]:
        """Where nothing happened."""
        found = np.ones(len(self.values), dtype=bool)
        for event in self.events:
            found[event.start : event.end] = False
        return found


def generate_curves(count: int, seed: int = 0) -> Iterator[Curve]:
    """Draw curves as a language model's training loss is: nats, a power law, white noise of some hundredths.

    In turn: nothing happens; the noise has heavy tails (Student's t with 6 degrees of freedom); the loss is small, a
    classifier's that falls to 0.05, and its noise half as large as itself; the level drifts by some hundredths
    (Ornstein-Uhlenbeck, over thousands of steps); the loss falls where the learning rate does; five single values are
    0.5 to 5 nats too high; the level shifts by 0.1 to 0.5 nats with the data; the run detonates by 1 to 9 nats,
    early or late, and comes back slowly or not at all; it diverges slowly, by 0.15 to 0.7 nats.

    Args:
        count: How many, each of `LENGTH` steps; a multiple of 9 has as many of each kind.
        seed: Of what is drawn.

    Example:
        >>> [curve.name for curve in generate_curves(9)][-2:]
        ['detonation', 'slow divergence']
    """
    draw = np.random.default_rng(seed)
    for index in range(count):
        name, happen = _KINDS[index % len(_KINDS)]
        steps = np.arange(LENGTH)
        size = 0.03 * math.exp(draw.normal(0.0, 0.4))  # of the noise
        values = 2.5 + 8.5 / np.sqrt(1.0 + steps / 200.0)  # from 11 to 3
        noise = draw.standard_t(6, LENGTH) / math.sqrt(1.5) if name == "heavy tails" else draw.normal(size=LENGTH)
        yield Curve(name, values + size * noise, []) if happen is None else happen(name, values, size * noise, draw)


def read_curves(folder: Path) -> list[Curve]:
    """Read curves from a folder: NAME.npz with the arrays `step` and `loss`, and `labels.json`.

    The labels are a list of events for each name. An event has a `kind` (what ends in "detonation" and
    `one_step_outlier` with the `step` where it shows, `slow_divergence` and `mild_drift` with the `best_step` after
    which it begins). What does not recover is not healthy up to the end of the curve. Of the first 3000 steps of a run
    nothing is said.

    Args:
        folder: With the files.

    Raises:
        ValueError: If there are no labels, no curves, or an event is none of these.

    Example:
        >>> read_curves(Path("nowhere"))
        Traceback (most recent call last):
        ValueError: there is no labels.json in nowhere.
    """
    labels = folder / "labels.json"
    if not labels.is_file():
        raise ValueError(f"there is no labels.json in {folder}.")
    found = []
    for name, events in sorted(json.loads(labels.read_text(encoding="utf-8")).items()):
        path = folder / f"{name}.npz"
        if not path.is_file():
            raise ValueError(f"labels.json names {name}, but there is no {path.name} in {folder}.")
        with np.load(path, allow_pickle=False) as arrays:
            steps, values = arrays["step"], arrays["loss"].astype(np.float64)
        warmup = Event("warm-up", 0, int(np.searchsorted(steps, _LABELLED_FROM)))
        found.append(Curve(name, values, [warmup, *(_read_event(event, steps) for event in events)]))
    if not found:
        raise ValueError(f"labels.json in {folder} names no curve.")
    return found


def _read_event(event: dict[str, object], steps: NDArray[np.int32]) -> Event:
    kind, shows = str(event.get("kind")), event.get("step", event.get("best_step"))
    if not isinstance(shows, int):
        raise ValueError(f"labels.json: an event of kind {kind!r} has neither a `step` nor a `best_step`.")
    start = int(np.searchsorted(steps, shows))
    if kind.endswith("detonation"):
        return Event(DETONATION, start, len(steps))
    if kind == "one_step_outlier":
        return Event(OUTLIER, start, min(start + _FADES, len(steps)))
    if kind in ("slow_divergence", "mild_drift"):
        return Event(SLOW_DIVERGENCE if kind == "slow_divergence" else "mild drift", start, len(steps))
    raise ValueError(f"labels.json: there is no kind of event {kind!r}.")


def _is_small(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    level = 0.05 + 2.2 * np.exp(-np.arange(LENGTH) / 3000)
    return Curve(name, level * draw.gamma(4.0, 0.25, LENGTH), [])


def _drifts(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    level, keep = 0.0, math.exp(-1.0 / 3000)
    pushes = 0.03 * math.sqrt(1.0 - keep**2) * draw.normal(size=LENGTH)
    levels = np.empty(LENGTH)
    for step, push in enumerate(pushes.tolist()):
        levels[step] = level = keep * level + push
    return Curve(name, values + levels + noise, [])


def _falls(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    for start in (LENGTH // 2, 3 * LENGTH // 4):
        values = values - draw.uniform(0.1, 0.4) * np.clip((np.arange(LENGTH) - start) / 200, 0.0, 1.0)
    return Curve(name, values + noise, [])


def _has_outliers(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    where = draw.choice(np.arange(LENGTH // 10, LENGTH), 5, replace=False)
    values[where] += draw.uniform(0.5, 5.0, 5)
    return Curve(name, values + noise, [Event(OUTLIER, int(at), int(at) + 1) for at in where])


def _shifts(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    start = int(draw.integers(LENGTH // 3, 2 * LENGTH // 3))
    values[start:] += draw.uniform(0.1, 0.5)
    return Curve(name, values + noise, [Event(LEVEL_SHIFT, start, start + _SETTLES)])


def _detonates(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    start = int(_EARLIEST * (0.9 * LENGTH / _EARLIEST) ** draw.uniform())  # as many in the descent as after it
    since, stays = np.arange(LENGTH - start), draw.uniform(0.0, 1.0) < 0.25
    fade = 1.0 if stays else np.exp(-since / draw.uniform(300, 5000))
    values[start:] += draw.uniform(1.0, 9.0) * fade
    return Curve(name, values + noise, [Event(DETONATION, start, LENGTH)])


def _diverges(name: str, values: Values, noise: Values, draw: Draw) -> Curve:
    start = int(draw.integers(LENGTH // 4, LENGTH // 2))
    progress = np.clip((np.arange(LENGTH) - start) / (LENGTH - 1 - start), 0.0, 1.0)
    values[start:] = values[start]  # it is a rise over the best
    values += draw.uniform(0.15, 0.7) * progress ** draw.uniform(0.7, 2.0)
    return Curve(name, values + noise, [Event(SLOW_DIVERGENCE, start, LENGTH)])


_KINDS = [
    ("healthy", None),
    ("heavy tails", None),
    ("small loss", _is_small),
    ("drift", _drifts),
    ("learning rate drops", _falls),
    ("outliers", _has_outliers),
    (LEVEL_SHIFT, _shifts),
    (DETONATION, _detonates),
    (SLOW_DIVERGENCE, _diverges),
]
