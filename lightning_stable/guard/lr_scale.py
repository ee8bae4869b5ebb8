# SPDX-License-Identifier: Apache-2.0
"""The factor on the learning rate, and its way back up."""

from typing import Any


class LRScale:
    """What `ScaleLR` has made of the learning rate so far.

    Example:
        >>> scale = LRScale()
        >>> scale.multiply(0.25, recover_after=2)
        >>> values = []
        >>> for _ in range(4):
        ...     values.append(scale.value)
        ...     scale.clean_step()
        >>> values, scale.value
        ([0.25, 0.25, 0.5, 1.0], 1.0)
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._recover_after: int | None = None
        self._lowest = 1.0  # where the rise begins
        self._clean_steps = 0

    def multiply(self, factor: float, recover_after: int | None) -> None:
        """Lower it; after `recover_after` clean steps it rises again."""
        self.value *= factor
        self._recover_after = recover_after
        self.spike()

    def spike(self) -> None:
        """A step was not clean: a rise ends where it is, and the count begins anew."""
        self._lowest = self.value
        self._clean_steps = 0

    def clean_step(self) -> None:
        """Count a clean step, and set the value for the next one."""
        if self._recover_after is None or self.value == 1.0:
            return
        self._clean_steps += 1
        risen = (self._clean_steps + 1 - self._recover_after) / self._recover_after
        if risen > 0:
            self.value = self._lowest ** max(0.0, 1.0 - risen)

    def state_dict(self) -> dict[str, Any]:
        """The value and where it stands on its way."""
        return {
            "value": self.value,
            "recover_after": self._recover_after,
            "lowest": self._lowest,
            "clean_steps": self._clean_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self.value = state_dict["value"]
        self._recover_after = state_dict["recover_after"]
        self._lowest = state_dict["lowest"]
        self._clean_steps = state_dict["clean_steps"]
