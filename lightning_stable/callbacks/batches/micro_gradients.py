# SPDX-License-Identifier: Apache-2.0
"""What the gradients of a window's micro-batches, on all ranks, say about their noise."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_stable._lightning.ranks import sum_over_ranks
from lightning_stable._lightning.trainer import gradient_scaler
from lightning_stable.functional.gradient_noise import GradientNoise, noise_from_sums
from lightning_stable.functional.tensor_norms import stacked, tensor_norms

PARTS = 4  # copies of the gradients, where their directions count


class MicroGradients:
    """Looks at each micro-batch's gradient on its way into `.grad`: before it is added, and before DDP averages it.

    A hook on every parameter takes the norm of what arrives; nothing is copied, and no backward pass is added. Where
    directions count, the sums over up to four parts of the window are kept until it ends.

    Args:
        parameters: Those that are trained.
        length: Micro-batches of the window on this rank.
        keeps_directions: Whether `GradientNoise.along` is wanted.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> micro = MicroGradients([weight], length=2)
        >>> for x in (torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])):
        ...     micro.begin_backward()
        ...     (weight @ x / 2).backward()
        ...     micro.end_backward(samples=4)
        >>> noise, samples = micro.finish(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
        >>> noise.variance, noise.mean_square, samples
        (8.0, 3.0, 4.0)
    """

    def __init__(self, parameters: Iterable[Tensor], length: int, keeps_directions: bool = False) -> None:
        self.unusable = ""  # why, as far as this rank knows
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._length = length
        count = min(length, PARTS) if keeps_directions else 0
        self._parts: list[list[Tensor | None]] = [[None] * len(self._parameters) for _ in range(count)]
        self._part_sizes = [0] * count
        self._norms: dict[int, Tensor] = {}  # of the micro-batch under way, by the number of the parameter
        self._squares: list[Tensor] = []
        self._samples: list[int] = []
        self._active = False
        self._hooks = [
            parameter.register_hook(partial(self._note, number)) for number, parameter in enumerate(self._parameters)
        ]

    def begin_backward(self) -> None:
        """What arrives from here on belongs to the next micro-batch."""
        self._active = True
        self._norms = {}

    def end_backward(self, samples: int | None) -> None:
        """A micro-batch of so many samples is done."""
        self._active = False
        if self._parts:
            self._part_sizes[self._part()] += 1
        norms = list(self._norms.values())
        self._squares.append(stacked(norms, norms).square().sum())
        self._samples.append(samples or 0)
        if not samples:
            self.unusable = "its batches hold no tensor whose first axis would be the samples"

    def finish(self, trainer: Trainer, ends_epoch: bool = False) -> tuple[GradientNoise, float] | None:
        """The noise, and the mean samples of a micro-batch; `None` if nothing is to be said. All ranks must call this.

        Nothing is said of a window that was cut short, where the loader ended unforeseen or `training_step` returned
        `None`: its gradient is divided by more micro-batches than it is the sum of, and is no mean. Neither is of one
        that ends an epoch with micro-batches of several sizes: its last one is what was left.

        To be called when the last micro-batch has been added, and averaged over the ranks, and nobody has changed it.
        """
        self.detach()
        scaler = gradient_scaler(trainer)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        factor = self._length / scale  # what arrives is divided by the window's length
        gradients = [parameter.grad for parameter in self._parameters]
        mean_square = float(tensor_norms([g for g in gradients if g is not None and not g.is_sparse]).square().sum())
        squares = factor**2 * sum(float(total) for total in self._squares)
        along = factor**2 * self._squares_along(gradients) / mean_square if mean_square else 0.0
        sizes = self._samples
        of_sizes = [len(sizes), sum(sizes), sum(size**2 for size in sizes), sum(1 / size for size in sizes if size)]
        is_unusable = bool(self.unusable) or len(sizes) < self._length
        own = [squares, along, *of_sizes, float(is_unusable), float(ends_epoch)]
        squares, along, count, total, squared, inverse, unusable, ends = sum_over_ranks(trainer, own)
        if unusable or count < 2 or (ends and count * squared != total**2):
            return None
        parts = len(self._parts) * trainer.world_size
        harmonic_mean = count / inverse
        noise = noise_from_sums(harmonic_mean, int(count), squares, mean_square / scale**2, parts, along)
        return (noise, total / count) if all(map(math.isfinite, noise)) else None

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _note(self, number: int, gradient: Tensor) -> None:
        if not self._active:
            return
        if number in self._norms:
            self.unusable = "a parameter got several gradients from one backward pass (reentrant checkpointing?)"
        if gradient.is_sparse:
            self.unusable = "its gradients are sparse"
            return
        gradient = gradient.detach()
        self._norms[number] = torch.linalg.vector_norm(
            gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        if self._parts:
            sums = self._parts[self._part()]
            so_far = sums[number]
            sums[number] = gradient.clone() if so_far is None else so_far.add_(gradient)

    def _part(self) -> int:
        """Where the micro-batch under way belongs to."""
        return min(len(self._squares), self._length - 1) * len(self._parts) // self._length

    def _squares_along(self, gradients: list[Tensor | None]) -> float:
        """The sum over the parts, each weighted by its size, of (mean of the part . gradient)^2."""
        total = 0.0
        for sums, size in zip(self._parts, self._part_sizes, strict=True):
            pairs = [(a, b) for a, b in zip(sums, gradients, strict=True) if a is not None and b is not None]
            product = sum(float((a * b).sum(dtype=torch.float64)) for a, b in pairs)
            total += product**2 / size if size else 0.0
        return total
