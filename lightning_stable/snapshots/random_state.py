# SPDX-License-Identifier: Apache-2.0
"""The state of every random number generator a training step may draw from."""

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """Python's, NumPy's, torch's and every CUDA device's generator at one moment.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(1), random.random()
        >>> state.restore()
        >>> (torch.rand(1), random.random()) == first
        True
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Set all generators back to that moment."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda[: torch.cuda.device_count()])

    def state_dict(self) -> dict[str, Any]:
        """The states in types that load with `weights_only=True`."""
        name, keys, *rest = self._numpy
        return {
            "python": self._python,
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch": self._torch,
            "cuda": self._cuda,
        }

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> "RandomState":
        """The states that `state_dict` was taken from; an error if generators could not be in them."""
        state = cls()
        version, keys, gauss = state_dict["python"]
        state._python = (version, tuple(keys), gauss)
        name, numbers, *rest = state_dict["numpy"]
        state._numpy = (name, numbers.cpu().numpy().astype(np.uint32), *rest)
        state._torch = state_dict["torch"].cpu()
        state._cuda = [device_state.cpu() for device_state in state_dict["cuda"]]
        state._try_out()
        return state

    def _try_out(self) -> None:
        """Set generators that nobody uses to these states: who restores them later must be able to."""
        random.Random().setstate(self._python)
        if not 0 <= self._numpy[2] <= len(self._numpy[1]):
            raise ValueError(f"NumPy's generator has no position {self._numpy[2]}.")  # it would not notice itself
        np.random.RandomState().set_state(self._numpy)
        torch.Generator().set_state(self._torch)


def state_of(random: RandomState | None) -> dict[str, Any] | None:
    """The state dict of `random`, if there is one.

    Example:
        >>> state_of(None) is None
        True
    """
    return None if random is None else random.state_dict()


def random_of(state_dict: dict[str, Any] | None) -> RandomState | None:
    """The random state that `state_dict` was taken from, if there is one.

    Example:
        >>> random_of(None) is None
        True
    """
    return None if state_dict is None else RandomState.from_state_dict(state_dict)
