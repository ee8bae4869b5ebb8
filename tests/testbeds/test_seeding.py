# SPDX-License-Identifier: Apache-2.0
import torch

from lightning_stable.testbeds.seeding import seeded_generator


def test_the_same_key_gives_the_same_numbers():
    draws = [torch.rand(5, generator=seeded_generator(3, "noise", 7)) for _ in range(2)]
    assert torch.equal(*draws)


def test_neighbouring_keys_give_unrelated_numbers():
    draws = torch.stack([torch.rand(1000, dtype=torch.float64, generator=seeded_generator(0, i)) for i in range(8)])
    off_diagonal = draws.corrcoef() - torch.eye(8, dtype=torch.float64)
    assert off_diagonal.abs().max() < 0.15


def test_the_parts_of_a_key_do_not_run_together():
    first, second = (torch.rand(5, generator=seeded_generator(*key)) for key in ((1, 11), (11, 1)))
    assert not torch.equal(first, second)


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    torch.rand(5, generator=seeded_generator(0))
    assert torch.equal(torch.get_rng_state(), before)
