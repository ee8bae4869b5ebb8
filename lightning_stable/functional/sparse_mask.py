# SPDX-License-Identifier: Apache-2.0
"""Choose a share of a tensor's entries at random, the same ones on every machine, without storing them."""

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF


def sparse_mask(size: int, kept: int, key: tuple[int, ...], start: int, stop: int, device: torch.device) -> Tensor:
    """Return the flat positions of the entries that are kept: number `start` to `stop` of exactly `kept` ones.

        entry j of k = kept, out of n = size:   (offset + b_j + floor(u_j (b_{j+1} - b_j))) mod n
        b_j = floor(j n / k)

    with u_j uniform in [0, 1) and the offset uniform in 0 .. n - 1, both hashed from `key` and j. Each of the k strata
    of the tensor gives one entry, so none comes twice, and through the offset each is as likely as any other.

    Paper: the sparse momentum of Huang et al., "SPAM" (ICLR 2025).

    Deviations: SPAM draws from the global generator, so masks differ between ranks, and their size from time to time.
    Here the positions are a function of the arguments alone, in integers, so alike on every device and after a resume.

    Args:
        size: Entries of the tensor.
        kept: How many of them are kept, at most `size`.
        key: What the choice depends on, such as a seed, the parameter's number and the number of the reset.
        start: The first of the kept entries asked for.
        stop: The one after the last.
        device: Where the positions are to be.

    Returns:
        Positions, int64, `stop - start` of them.

    Example:
        >>> sparse_mask(size=8, kept=4, key=(0, 0, 0), start=0, stop=4, device=torch.device("cpu")).sort().values
        tensor([2, 3, 6, 7])
    """
    entry = torch.arange(start, stop, dtype=torch.int64, device=device)
    first = entry * size // kept
    room = (entry + 1) * size // kept - first
    seed = _seed(key)
    within = (_hash(entry ^ seed) * room) >> 32
    offset = int(_hash(torch.tensor(seed ^ 0x9E3779B9)) * size) >> 32
    return (first + within + offset) % size


def _seed(key: tuple[int, ...]) -> int:
    state = torch.zeros((), dtype=torch.int64)
    for number in key:
        state = _hash(state + (number & _32_BITS) + 0x9E3779B9)
    return int(state)


def _hash(value: Tensor) -> Tensor:
    """Mix 32 bits thoroughly (the finalizer of MurmurHash3); products may overflow, their low 32 bits are right."""
    value = value & _32_BITS
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _32_BITS
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _32_BITS
    return value ^ (value >> 16)
