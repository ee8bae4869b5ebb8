# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.functional import sparse_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "kept"), [(1, 1), (7, 3), (7, 7), (100, 99), (1000, 250), (2**20 + 3, 1000)])
def test_as_many_entries_as_asked_for_and_none_twice(size, kept):
    chosen = sparse_mask(size, kept, (1, 2, 3), 0, kept, CPU)
    assert chosen.unique().numel() == kept
    assert chosen.min() >= 0
    assert chosen.max() < size


def test_parts_are_parts_of_the_whole():
    whole = sparse_mask(1000, 300, (5,), 0, 300, CPU)
    parts = [sparse_mask(1000, 300, (5,), start, start + 100, CPU) for start in (0, 100, 200)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_entry_is_as_likely_as_any_other():
    counts = torch.zeros(30)
    for number in range(3000):
        counts[sparse_mask(30, 20, (0, number), 0, 20, CPU)] += 1
    share = counts / 3000
    assert (share - 2 / 3).abs().max() < 0.05  # 5 standard deviations


def test_every_number_of_the_key_matters():
    masks = [
        tuple(sparse_mask(100, 50, key, 0, 50, CPU).tolist()) for key in [(0, 0), (1, 0), (0, 1), (2**40, 0), (0,)]
    ]
    assert len(set(masks)) >= 4  # 2**40 has the same low 32 bits as 0


def test_the_choice_is_the_same_on_every_machine():
    assert sparse_mask(1000, 5, (0, 1, 2), 0, 5, CPU).tolist() == [268, 593, 748, 986, 164]


def test_no_global_randomness_is_used():
    before = torch.get_rng_state()
    sparse_mask(100, 50, (0,), 0, 50, CPU)
    assert torch.equal(torch.get_rng_state(), before)
