# SPDX-License-Identifier: Apache-2.0
"""Several values in a row that are a multiple of the mean."""

from collections.abc import Iterable
from typing import Any

from lightning_stable.detectors.arguments import require, require_rebaseline
from lightning_stable.detectors.consecutive import Consecutive
from lightning_stable.detectors.detector import Detector, Verdict
from lightning_stable.detectors.ratio import Ratio
from lightning_stable.detectors.scan import Scan


class MultipleOfMean(Detector):
    """Call a value an anomaly when more than `patience` values in a row are above a multiple of the mean before them.

        large    <=>  value > mean of the last `window` accepted values times `multiple`
        anomaly  <=>  value is not finite,  or  it and the `patience` values before it are large

    The first rule of llm-foundry's `KillLossSpike`, with its defaults: it lets spikes pass that recover by themselves,
    and notices a detonation four steps late.

    Deviations from it: large values never enter the mean; the window does not grow with the run; when more than
    `rebaseline` of the latest 64 (or `window`) values are large, they are a new level; the state can be saved. Its
    second rule, too many losses above a fixed limit, is for `LevelShift`.

    Args:
        window: How many accepted values the mean is of, at least 1.
        multiple: Times the mean, larger than 1.
        patience: Large values in a row that pass, at least 0.
        warmup: Accepted values needed before anything finite can be an anomaly, from 1 to `window`.
        rebaseline: Share of large values above which they are a new level, at most 1; `None` for never.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = MultipleOfMean(warmup=2, patience=1)
        >>> [detector.update(loss).is_anomaly for loss in (2.0, 2.0, 6.0, 2.0, 6.0, 6.0)]
        [False, False, False, False, False, True]
    """

    def __init__(
        self,
        window: int = 100,
        multiple: float = 2.0,
        patience: int = 4,
        warmup: int = 100,
        rebaseline: float | None = 0.25,
    ) -> None:
        require("MultipleOfMean", "window", window, window >= 1, "at least 1")
        require("MultipleOfMean", "multiple", multiple, 1 < multiple < float("inf"), "finite and larger than 1")
        require("MultipleOfMean", "patience", patience, patience >= 0, "at least 0")
        require("MultipleOfMean", "warmup", warmup, 1 <= warmup <= window, f"from 1 to window={window}")
        require_rebaseline("MultipleOfMean", rebaseline)
        large = Ratio(window=window, ratio=multiple, warmup=warmup, rebaseline=rebaseline)
        self._row = Consecutive(large, times=patience + 1)

    def judge(self, value: float) -> Verdict:
        """Say whether `value` ends a row of large ones."""
        return self._row.judge(value)

    def accept(self, value: float) -> None:
        """Remember `value`; a large one lengthens the row."""
        self._row.accept(value)

    def reject(self, value: float) -> None:
        """Lengthen the row."""
        self._row.reject(value)

    def state_dict(self) -> dict[str, Any]:
        """The window, and the length of the row."""
        return self._row.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._row.load_state_dict(state_dict)

    def scan(self, values: Iterable[float]) -> Scan:
        """Do what `update` does for each of `values`, a few thousand at once."""
        return self._row.scan(values)
