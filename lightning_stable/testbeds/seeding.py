# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on a key and on nothing else."""

import random

import torch


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a generator that is a function of `key` alone; no global random number is read or drawn.

    Args:
        *key: What the numbers shall depend on, for example a seed and an epoch.

    Example:
        >>> draws = [torch.randint(100, (3,), generator=seeded_generator(0, "epoch", epoch)) for epoch in (1, 1, 2)]
        >>> torch.equal(draws[0], draws[1]), torch.equal(draws[0], draws[2])
        (True, False)
    """
    # a text seeds `random.Random` through SHA-512, so that neighbouring keys give unrelated streams
    return torch.Generator().manual_seed(random.Random("/".join(map(str, key))).getrandbits(63))
