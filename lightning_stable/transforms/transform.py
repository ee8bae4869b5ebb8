# SPDX-License-Identifier: Apache-2.0
"""What the gradient transforms have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter that has a gradient now."""

    position: int  # among all parameters that were handed in
    parameter: Tensor  # like the gradient, a DTensor where it is sharded
    gradient: Tensor  # its `.grad`, to be changed in place


class Transform(ABC):
    """Changes gradients in place, between `backward` and the optimizer's step, and may remember earlier ones.

    Works with any optimizer, in any loop:

        loss.backward()
        transform.transform(model.parameters())
        optimizer.step()

    Under Lightning, `GradientTransforms` runs a chain of them. Parameters are known by their position: hand in the same
    ones in the same order every time; more may come at the end later. Parameters without a gradient are passed over.

    A tensor whose gradient holds NaN or infinity is left as it is, and does not enter what is remembered: whether to
    skip the step is for others to say. Exceptions say so.

    `clip_rate` is the share of what could have been clipped that was, in the last call; `None` where nothing ever is.

    Raises:
        ValueError: If a gradient is sparse.

    Example:
        >>> from lightning_stable.transforms import GlobalNormClip
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> GlobalNormClip(max_norm=1.0).transform([parameter])
        >>> parameter.grad.norm().item()
        1.0
    """

    clip_rate: Tensor | None = None

    @torch.no_grad()
    def transform(self, params: Iterable[Tensor]) -> None:
        """Change the gradients of these parameters in place."""
        self.clip_rate = None
        members = []
        for position, parameter in enumerate(params):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"`{type(self).__name__}.transform(params=...)` must have dense gradients; that of parameter "
                    f"{position}, of shape {tuple(parameter.shape)}, is sparse. Use `nn.Embedding(sparse=False)`."
                )
            members.append(Member(position, parameter, gradient))
        if members:
            self._transform(members)

    def bind(self, optimizer: Optimizer) -> None:  # noqa: B027  # most have no use for it
        """Make the optimizer known whose parameters these are, to those who can use what it remembers."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept for a resumed run to go on as if nothing had happened; copies, not the state itself."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027  # many have nothing to remember
        """Go on from a state."""

    @abstractmethod
    def _transform(self, members: list[Member]) -> None:
        """Change `member.gradient` of each in place; there is at least one."""


class TensorScalars:
    """Numbers that a transform remembers per parameter: one row per name, one column per position, float64.

    Args:
        *names: Names of the rows.

    Example:
        >>> scalars = TensorScalars("mean", "step")
        >>> scalars.take([2], torch.device("cpu"))["step"].tolist()
        [0.0]
        >>> scalars.put([2], step=torch.tensor([1.0], dtype=torch.float64))
        >>> scalars.state_dict()["step"].tolist()
        [0.0, 0.0, 1.0]
    """

    def __init__(self, *names: str) -> None:
        self._rows = {name: torch.zeros(0, dtype=torch.float64) for name in names}

    def take(self, positions: list[int], device: torch.device) -> dict[str, Tensor]:
        """Return the numbers at these positions, 0 where there were none yet, on `device`."""
        size = max(positions) + 1
        for name, row in self._rows.items():
            missing = max(0, size - row.numel())
            self._rows[name] = torch.nn.functional.pad(row.to(device), (0, missing))
        chosen = _chosen(positions)
        return {name: row[chosen].clone() for name, row in self._rows.items()}

    def put(self, positions: list[int], **values: Tensor) -> None:
        """Remember new numbers at these positions."""
        for name, value in values.items():
            self._rows[name][_chosen(positions)] = value

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all rows."""
        return {name: row.clone() for name, row in self._rows.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take the rows of a state, as copies."""
        self._rows = {name: state_dict[name].clone() for name in self._rows}


def _chosen(positions: list[int]) -> "list[int] | slice":
    """A slice where it can be: an accelerator has to be sent a list."""
    if positions == list(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    return positions
