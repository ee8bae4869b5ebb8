# SPDX-License-Identifier: Apache-2.0
"""A comparison in which one side was tuned more than another says nothing: it is refused before anything runs."""

from collections import Counter
from collections.abc import Sequence

from lightning_stable.studies.engine.study import Trial, point_key


class UnequalTuning(ValueError):
    """A study that could not be fair.

    Example:
        >>> str(UnequalTuning("a 2 points, b 1 point"))
        'a 2 points, b 1 point'
    """


def require_equal_tuning(study: str, trials: Sequence[Trial]) -> None:
    """Refuse trials in which the sides of a setting have not as many tuning points, each with the same seeds.

    Args:
        study: What to call it.
        trials: All of them.

    Raises:
        UnequalTuning: Naming the setting, the sides and how many points each of them has.

    Example:
        >>> require_equal_tuning("toy", [Trial("a", {}, {"lr": 0.1}), Trial("a", {}, {"lr": 0.2}), Trial("b")])
        Traceback (most recent call last):
            ...
        lightning_stable...UnequalTuning: ...gives its sides unequal tuning: a 2 points, b 1 point. All need as many.
    """
    if not trials:
        raise UnequalTuning(f"The study {study} has no runs: `trials` must return at least one.")
    twice = [key for key, times in Counter(trial.key for trial in trials).items() if times > 1]
    if twice:
        raise UnequalTuning(
            f"The study {study} has the same run twice: {twice[0]}. `trials` must return each run once."
        )
    for setting, sides in _by_setting(trials).items():
        counts = {side: len(points) for side, points in sides.items()}
        where = "" if setting == "{}" else f" in the setting {setting}"
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{side} {count} {'point' if count == 1 else 'points'}" for side, count in counts.items())
            raise UnequalTuning(f"The study {study} gives its sides unequal tuning{where}: {said}. All need as many.")
        seeds = {tuple(sorted(seeds)) for points in sides.values() for seeds in points.values()}
        if len(seeds) > 1:
            said = " and ".join(map(str, sorted(seeds)))
            raise UnequalTuning(f"The study {study} gives its sides unequal seeds{where}: {said}. All need the same.")


def tuning_budget(trials: Sequence[Trial]) -> str:
    """What each side may try, as a sentence; the trials are equally tuned.

    Args:
        trials: All of them.

    Example:
        >>> tuning_budget([Trial(side, {}, {"lr": lr}, 0) for side in ("a", "b") for lr in (0.1, 0.2)])
        'each of the 2 sides has 2 points of lr x 1 seed (0) = 2 runs in each setting (1); 4 runs in all'
    """
    settings = _by_setting(trials)
    sides = list(dict.fromkeys(trial.side for trial in trials))
    seeds = sorted({trial.seed for trial in trials})
    counts = sorted({len(points) for sides in settings.values() for points in sides.values()})
    names = sorted({name for trial in trials for name in trial.tuning})
    points = " or ".join(map(str, counts)) + (" point" if counts == [1] else " points")
    points += f" of {', '.join(names)}" if names else " (nothing is tuned)"
    runs = " or ".join(str(count * len(seeds)) for count in counts)
    return (
        f"each of the {len(sides)} sides has {points} x {_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
        f" = {runs} runs in each setting ({len(settings)}); {len(trials)} runs in all"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _by_setting(trials: Sequence[Trial]) -> dict[str, dict[str, dict[str, list[int]]]]:
    """From settings to sides to tuning points to seeds."""
    settings: dict[str, dict[str, dict[str, list[int]]]] = {}
    for trial in trials:
        points = settings.setdefault(point_key(trial.setting), {}).setdefault(trial.side, {})
        points.setdefault(point_key(trial.tuning), []).append(trial.seed)
    return settings
