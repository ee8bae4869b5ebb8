# SPDX-License-Identifier: Apache-2.0
import itertools
import pickle

import pytest
import torch

from lightning_stable.testbeds.batch_stream import BatchStream


def epochs(stream, count):
    keys = []
    for epoch in range(count):
        stream.set_epoch(epoch)
        keys += list(stream)
    return keys


def test_an_epoch_holds_every_sample_once():
    keys = list(BatchStream(n_samples=12, batch_size=3))
    assert sorted(itertools.chain(*(key.samples for key in keys))) == list(range(12))
    assert len(keys) == len(BatchStream(n_samples=12, batch_size=3)) == 4


def test_samples_that_fill_no_batch_are_left_out():
    keys = list(BatchStream(n_samples=11, batch_size=4))
    assert [len(key.samples) for key in keys] == [4, 4]


def test_batches_are_numbered_over_the_whole_stream():
    assert [key.batch for key in epochs(BatchStream(n_samples=12, batch_size=3), 3)] == list(range(12))


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = epochs(BatchStream(n_samples=12, batch_size=3), 2)
    torch.manual_seed(2)
    assert epochs(BatchStream(n_samples=12, batch_size=3), 2) == first
    assert first[:4] != first[4:]
    assert epochs(BatchStream(n_samples=12, batch_size=3, seed=1), 2) != first
    assert list(BatchStream(n_samples=12, batch_size=3, epoch=1)) == first[4:]


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    epochs(BatchStream(n_samples=12, batch_size=3), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_short_epoch_holds_the_first_batches_of_its_permutation():
    whole, short = (list(BatchStream(n_samples=12, batch_size=3, batches_per_epoch=n)) for n in (4, 2))
    assert short == whole[:2]


def test_an_epoch_longer_than_the_data_goes_on_with_another_permutation():
    keys = list(BatchStream(n_samples=4, batch_size=2, batches_per_epoch=6))
    passes = [keys[i].samples + keys[i + 1].samples for i in (0, 2, 4)]
    assert [sorted(one) for one in passes] == [[0, 1, 2, 3]] * 3
    assert len(set(passes)) > 1


def test_dropped_batches_are_missing_and_all_others_are_the_same():
    whole = list(BatchStream(n_samples=12, batch_size=3))
    kept = BatchStream(n_samples=12, batch_size=3, drop=[0, 2])
    assert list(kept) == [whole[1], whole[3]]
    assert len(kept) == 2


def test_the_epoch_is_read_when_the_first_batch_is_asked_for():
    stream = BatchStream(n_samples=12, batch_size=3)
    early = iter(stream)
    stream.set_epoch(1)
    assert [key.batch for key in early] == [4, 5, 6, 7]


def test_processes_share_the_batches():
    whole = epochs(BatchStream(n_samples=15, batch_size=3), 2)
    first, second = (epochs(BatchStream(n_samples=15, batch_size=3, rank=rank, world_size=2), 2) for rank in (0, 1))
    assert first == [whole[0], whole[2], whole[5], whole[7]]
    assert second == [whole[1], whole[3], whole[6], whole[8]]


def test_a_restored_stream_goes_on_once_and_then_begins_at_the_front():
    stream = BatchStream(n_samples=12, batch_size=3)
    stream.load_state_dict({"epoch": 1, "position": 3})
    stream.set_epoch(1)
    assert [key.batch for key in stream] == [7]
    assert [key.batch for key in stream] == [4, 5, 6, 7]


def test_a_restored_position_counts_for_its_own_epoch_only():
    stream = BatchStream(n_samples=12, batch_size=3)
    stream.load_state_dict({"epoch": 0, "position": 4})
    stream.set_epoch(1)
    assert [key.batch for key in stream] == [4, 5, 6, 7]


def test_keys_and_streams_can_be_sent_to_another_process():
    stream = BatchStream(n_samples=12, batch_size=3, drop=[1])
    assert list(pickle.loads(pickle.dumps(stream))) == list(stream)


def test_an_epoch_of_another_length_is_refused():
    stream = BatchStream(n_samples=12, batch_size=3, drop=[5])
    with pytest.raises(RuntimeError, match=r"leaves 3 batches in epoch 1, but .* 4\. Use `Trainer\(reload_dataloaders"):
        stream.set_epoch(1)


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"Epoch 0 has no batch: of 2 batches of 3 samples, 0 are not dropped"):
        BatchStream(n_samples=6, batch_size=3, drop=[0, 1])
    with pytest.raises(ValueError, match=r"Epoch 0 has no batch: of 0 batches .* Lower `batch_size`"):
        BatchStream(n_samples=2, batch_size=3)
