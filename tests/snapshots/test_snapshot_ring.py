# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.snapshots.snapshot_ring import SnapshotRing
from tests.faulty_runs import assert_same, make_batches, run
from tests.snapshots.test_snapshot import addresses_of


class Rings(Callback):
    """Snapshots before each batch, in three slots; at batch `at` it does `then`."""

    def __init__(self, at, then):
        self.at, self.then = at, then
        self.states, self.done = [], False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.ring = SnapshotRing(trainer, pl_module, self, count=3, to="host", max_bytes=None)
        if batch_idx == self.at:
            self.then(self, trainer, pl_module)
            self.done = True
        if not self.done:
            self.ring.allocate_optimizer_state()
            self.ring.capture({"number": batch_idx})
            self.ring.wait()
            self.ring.newest.batches.append(batch_idx)
            self.ring.newest.windows += 1
            self.states.append(look(trainer, pl_module))


def look(trainer, module):
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    return weights, copy.deepcopy(trainer.optimizers[0].state_dict()["state"]), trainer.global_step


def rings(at, then):
    callback = Rings(at, then)
    run(make_batches(7), [callback], epochs=1)
    assert callback.done


@pytest.mark.parametrize(("back", "number"), [(1, 5), (2, 4), (3, 3), (9, 3)])
def test_it_goes_back_as_far_as_there_are_snapshots(back, number):
    def then(self, trainer, pl_module):
        slot, batches, windows = self.ring.go_back(back)
        assert slot.signals == {"number": number}
        assert batches == list(range(number, 6))
        assert windows == len(batches)
        assert_same(look(trainer, pl_module), self.states[number])
        assert len(self.ring) == number - 2  # the newer ones were of a way not taken
        assert self.ring.newest is slot
        assert (slot.batches, slot.windows) == ([], 0)

    rings(6, then)


def test_going_back_again_goes_on_to_older_ones():
    def then(self, trainer, pl_module):
        self.ring.go_back(2)
        assert_same(look(trainer, pl_module), self.states[4])
        self.ring.go_back(2)
        assert_same(look(trainer, pl_module), self.states[3])

    rings(6, then)


def test_all_buffers_are_there_after_the_first_step_and_are_used_again():
    def buffers(ring):
        return {address for slot in (*ring._free, *ring._taken) for address in addresses_of(slot.snapshot)}

    def early(self, trainer, pl_module):
        self.ring.allocate_optimizer_state()
        known = buffers(self.ring)
        for _ in range(5):
            self.ring.capture({})
        self.ring.go_back(2)
        self.ring.capture({})
        self.ring.forget()
        self.ring.capture({})
        assert buffers(self.ring) == known
        assert len(self.ring) == 1

    rings(1, early)


def test_what_is_too_large_is_refused_before_anything_is_allocated(monkeypatch):
    class TooLarge(Callback):
        def on_train_start(self, trainer, pl_module):
            monkeypatch.setattr(torch, "empty_like", None)
            SnapshotRing(trainer, pl_module, self, count=3, to="host", max_bytes=1000)

    message = r"allows 1,000 bytes, and the 3 snapshots that are kept need about [\d,]+, [\d,]+ each"
    with pytest.raises(ValueError, match=message):
        run(make_batches(2), [TooLarge()])


@pytest.mark.parametrize("count", [1, 3])
def test_a_pinned_snapshot_stays_and_what_follows_a_dropped_one_belongs_to_it(count):
    class Pins(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.ring = SnapshotRing(trainer, pl_module, self, count=count, to="host", max_bytes=None)
                self.ring.pin_next()
                self.first = look(trainer, pl_module)
                assert self.ring.move_since_pinned() is None
            if self.ring.can_capture:
                self.ring.capture({"number": batch_idx})
                self.ring.wait()
            self.ring.newest.batches.append(batch_idx)
            self.ring.newest.windows += 1
            if batch_idx == 6:
                self.go_back(trainer, pl_module)

        def go_back(self, trainer, pl_module):
            before = [parameter.detach().clone() for parameter in pl_module.parameters()]
            moved = self.ring.move_since_pinned()
            slot, batches, windows = self.ring.go_back(9)
            assert slot is self.ring.pinned
            assert (slot.signals, batches, windows) == ({"number": 0}, list(range(7)), 7)
            assert_same(look(trainer, pl_module), self.first)
            squares = [(a - b).double().square() for a, b in zip(before, pl_module.parameters(), strict=True)]
            assert moved == pytest.approx(torch.cat([one.flatten() for one in squares]).mean().sqrt().item(), rel=1e-6)
            assert self.ring.move_since_pinned() == 0.0
            self.ring.unpin()
            assert self.ring.can_capture
            self.checked = True

    callback = Pins()
    run(make_batches(7), [callback], epochs=1)
    assert callback.checked


def test_how_far_the_first_step_after_a_snapshot_went_is_known_until_the_next_one():
    moves = []

    class Moves(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.ring = SnapshotRing(trainer, pl_module, self, count=2, to="host", max_bytes=None)
                assert self.ring.move_in_first_step() is None
            if batch_idx % 3 == 0:
                self.ring.capture({})
            self.ring.newest.windows += 1

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            moves.append(self.ring.move_in_first_step())

    run(make_batches(5), [Moves()], epochs=1)
    assert [move is not None and move > 0 for move in moves] == [True, False, False, True, False]
