# SPDX-License-Identifier: Apache-2.0
"""Steps outside a running fit; what they come to within one is tested with the whole guard."""

import pytest

from lightning_stable.guard import SkipStep, TrainingHalted
from tests.faulty_runs import Net, make_batches, run
from tests.guard.test_spike_guard import guard


def test_there_are_guarded_steps_while_a_fit_runs_and_at_no_other_time():
    guarded = guard(SkipStep(times=99))
    assert guarded._steps is None
    run(make_batches(4, {2}), [guarded], epochs=1)
    assert guarded._steps is None
    guarded.on_before_backward(None, None, None)  # of a module that is trained by other means
    guarded.on_train_batch_start(None, None, None, 0)
    guarded.on_train_batch_end(None, None, None, None, 0)
    assert len(guarded.incidents) == 1


class WithoutLoss(Net):
    """Says nothing of the batches between two bad ones."""

    def training_step(self, batch, batch_idx):
        return None if 3 < batch_idx < 14 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_steps_without_a_loss_are_no_clean_ones():
    guarded = guard(SkipStep(times=1), forgive_after=5)
    with pytest.raises(TrainingHalted):
        run(make_batches(20, {3, 14}), [guarded], model=WithoutLoss, epochs=1)
    assert [incident.step for incident in guarded.incidents] == [3, 14]
