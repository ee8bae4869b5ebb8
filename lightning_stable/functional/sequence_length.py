# SPDX-License-Identifier: Apache-2.0
"""Batches of shorter sequences, made of one with long ones."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_stable.functional.batch_contents import replace_tensors


def batch_sequence_length(batch: Any, keys: Sequence[str] | None = None) -> int:
    """Return how long the sequences of a batch are.

    Args:
        batch: Nested containers of tensors.
        keys: Places of sequences [B, L, ...] and of masks [B, H, L, L], as in `"tokens"` or `"0"`. `None`: the tensors
            with two axes, of which the longest counts.

    Raises:
        ValueError: If there are no sequences, or those that are named differ in length.

    Example:
        >>> import torch
        >>> batch_sequence_length({"tokens": torch.zeros(2, 16), "weights": torch.zeros(2)})
        16
    """
    tensors: list[Tensor] = []
    for place in [None] if keys is None else keys:
        _collect(batch, place, tensors)
    shapes = [tensor.shape for tensor in tensors if (tensor.ndim == 2 if keys is None else tensor.ndim >= 2)]
    lengths = {int(shape[1]) for shape in shapes if len(shape) < 4} or {int(shape[1]) for shape in shapes}
    lengths |= {int(shape[1]) for shape in shapes if lengths.isdisjoint(shape[1:])}  # masks have it further back
    if not lengths:
        where = "of two axes [B, L]" if keys is None else f"[B, L, ...] at {', '.join(map(repr, keys))}"
        raise ValueError(f"The batch has no sequences {where}. Name the places of its sequences with `keys`.")
    if keys is not None and len(lengths) > 1:
        raise ValueError(f"The sequences at {', '.join(map(repr, keys))} must be of one length, got {sorted(lengths)}.")
    return max(lengths)


def truncate_sequences(batch: Any, length: int, keys: Sequence[str] | None = None) -> Any:
    """Return a batch in which all sequences end after `length` positions; the old one stays as it is.

    Without `keys`, L is `batch_sequence_length(batch)`, and cut are [B, L, ...] on its second axis, and of tensors with
    three axes or more where that is none, the last two as far as they are of size L: masks [B, L, L], [B, 1, L, L] and
    [B, 1, 1, L]. Floats of four axes or more whose second is not 1 may be images of L x L pixels, and stay as they are:
    [B, H, L, L] and [B, H, L, D] of floats have to be named.

    Args:
        batch: Nested containers of tensors.
        length: Positions that are left; a batch with fewer is returned as it is.
        keys: Places of the tensors to cut, by the same rule but for images. `None` is all of them.

    Raises:
        ValueError: If there are no sequences.

    Example:
        >>> import torch
        >>> batch = {"tokens": torch.arange(8).view(2, 4), "mask": torch.ones(2, 1, 4, 4), "weights": torch.ones(2)}
        >>> {name: tuple(tensor.shape) for name, tensor in truncate_sequences(batch, 3).items()}
        {'tokens': (2, 3), 'mask': (2, 1, 3, 3), 'weights': (2,)}
    """
    full = batch_sequence_length(batch, keys)
    if length >= full:
        return batch

    def cut(tensor: Tensor) -> Tensor:
        for axis in _axes(tensor, full, is_named=keys is not None):
            tensor = tensor.narrow(axis, 0, length)
        return tensor.contiguous()  # for those who `view` it

    return _replace(batch, cut, keys)


def reshape_sequences(batch: Any, length: int, keys: Sequence[str] | None = None) -> Any:
    """Return a batch of more and shorter sequences that holds every token of the old one, which stays as it is.

        [B, L, ...] -> [B L / length, length, ...],    [B, ...] -> each sample's value, repeated for each of its pieces

    Args:
        batch: Nested containers of tensors.
        length: Positions of the new sequences, a divisor of L.
        keys: Places of the tensors to reshape. `None` is all [B, L, ...].

    Raises:
        ValueError: If there are no sequences, `length` does not divide theirs, or there is a mask [..., L, L].

    Example:
        >>> import torch
        >>> batch = {"tokens": torch.arange(8).view(2, 4), "weights": torch.tensor([0.5, 1.0])}
        >>> reshape_sequences(batch, 2)
        {'tokens': tensor([[0, 1],
                [2, 3],
                [4, 5],
                [6, 7]]), 'weights': tensor([0.5000, 0.5000, 1.0000, 1.0000])}
    """
    full = batch_sequence_length(batch, keys)
    if length < 1 or full % length:
        raise ValueError(f"`reshape_sequences(length=...)` must be a divisor of the sequences' {full}, got {length}.")
    if length == full:
        return batch
    pieces = full // length
    named: list[Tensor] = []
    for place in keys or ():
        _collect(batch, place, named)
    sequences = {id(tensor) for tensor in named}
    samples = _samples(batch, full, named)

    def reshaped(tensor: Tensor) -> Tensor:
        is_named = id(tensor) in sequences
        axes = _axes(tensor, full, is_named) if keys is None or is_named else []
        if axes not in ([], [1]):
            raise ValueError(
                f"A mask of shape {tuple(tensor.shape)} cannot be cut into pieces. Leave it to the model, or truncate "
                "the sequences instead."
            )
        if axes:
            return tensor.reshape(-1, length, *tensor.shape[2:])
        return tensor.repeat_interleave(pieces, 0) if tensor.ndim and tensor.shape[0] == samples else tensor

    return replace_tensors(batch, reshaped)


def _axes(tensor: Tensor, full: int, is_named: bool) -> list[int]:
    """The axes that are positions in a sequence of `full`."""
    last_two = [axis for axis in (tensor.ndim - 2, tensor.ndim - 1) if axis >= 1 and tensor.shape[axis] == full]
    if tensor.ndim >= 2 and tensor.shape[1] == full:
        return last_two if tensor.ndim == 3 and len(last_two) == 2 else [1]
    if tensor.ndim >= 4 and tensor.is_floating_point() and tensor.shape[1] != 1 and not is_named:
        return []  # images, as far as anybody can tell
    return last_two


def _samples(batch: Any, full: int, named: list[Tensor]) -> int:
    tensors = named
    if not tensors:
        tensors = []
        _collect(batch, None, tensors)
    return next(int(tensor.shape[0]) for tensor in tensors if tensor.ndim >= 2 and tensor.shape[1] == full)


def _collect(batch: Any, place: str | None, into: list[Tensor]) -> None:
    def see(tensor: Tensor) -> Tensor:
        into.append(tensor)
        return tensor

    replace_tensors(batch, see, place, "keys")


def _replace(batch: Any, change: Any, keys: Sequence[str] | None) -> Any:
    for place in [None] if keys is None else keys:
        batch = replace_tensors(batch, change, place, "keys")
    return batch
