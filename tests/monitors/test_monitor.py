# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.monitors import Monitor
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.monitors.attentive_runs import Remembers


class Greedy(Monitor):
    """Draws random numbers and reads the weights; remembers when it was asked to."""

    def __init__(self, every_n_steps=2, empty=False):
        super().__init__(every_n_steps)
        self.empty = empty
        self.calls, self.steps, self.batches = [], [], []

    def begin(self, trainer, pl_module):
        self.calls.append("begin")

    def end(self):
        self.calls.append("end")

    def draw(self, trainer):
        self.calls.append("draw")

    def measure(self, trainer, pl_module):
        assert not torch.is_grad_enabled()
        torch.rand(7), random.random(), np.random.rand()
        self.calls.append("measure")
        self.batches.append(trainer.fit_loop.batch_idx)
        return {} if self.empty else {"stability/norm": sum(p.norm() for p in pl_module.parameters())}


def test_a_monitor_without_measure_cannot_be_made():
    class Lazy(Monitor):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Lazy(1)


def test_a_monitor_that_draws_random_numbers_changes_nothing():
    assert_same(run(make_batches(5), [Greedy(every_n_steps=1)]), run(make_batches(5)))


def test_begin_end_measure_and_draw_come_in_that_order_and_on_measured_steps_alone():
    monitor = Greedy(every_n_steps=3)
    run(make_batches(5), [monitor], epochs=1)
    assert monitor.calls == ["begin", "end", "measure", "draw"] * 2 + ["end"] * 2  # epoch end and teardown
    assert monitor.batches == [0, 3]


def test_nothing_is_logged_or_drawn_where_nothing_was_measured():
    logger, monitor = Remembers(), Greedy(empty=True)
    run(make_batches(3), [monitor], epochs=1, logger=logger)
    assert "draw" not in monitor.calls
    assert logger.sent == {}


@pytest.mark.parametrize(("accumulate", "batches"), [(1, [0, 2, 4]), (2, [1, 5]), (3, [2, 7])])
def test_of_an_accumulated_step_the_last_micro_batch_is_measured(accumulate, batches):
    monitor = Greedy()
    run(make_batches(8 if accumulate == 3 else 6), [monitor], epochs=1, accumulate_grad_batches=accumulate)
    if accumulate == 3:
        batches = [2, 7]  # windows 0-2, 3-5 and, cut short by the end of the epoch, 6-7
    assert monitor.batches == batches


def test_two_optimizers_that_count_two_steps_a_batch_are_measured_at_the_pace_of_the_count():
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self(batch["x"]).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            parameters = list(self.parameters())
            return [torch.optim.SGD(parameters[:2], lr=0.01), torch.optim.SGD(parameters[2:], lr=0.01)]

    monitor = Greedy(every_n_steps=3)
    run(make_batches(7), [monitor], model=Two, epochs=1)
    assert monitor.batches == [0, 2, 3, 5, 6]  # the first batches at or after steps 0, 3, 6, 9, 12


def test_a_step_that_is_undone_and_tried_again_is_measured_once():
    class Undoes(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx in (2, 3):
                step = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
                step.total.completed -= 1

    monitor = Greedy()
    run(make_batches(7), [monitor, Undoes()], epochs=1)
    assert monitor.batches == [0, 2, 6]  # batches 2, 3 and 4 are step 2


def test_a_second_fit_starts_anew():
    monitor = Greedy(every_n_steps=4)
    for _ in range(2):
        run(make_batches(6), [monitor], epochs=1)
    assert monitor.batches == [0, 4, 0, 4]


def test_an_exception_that_somebody_caught_does_not_leave_a_step_open():
    monitor = Greedy(every_n_steps=3)
    monitor.measuring, monitor.calls = True, []

    class Interrupts(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                monitor.measuring = True  # as if the batch before had broken off

    run(make_batches(3), [Interrupts(), monitor], epochs=1)
    assert monitor.calls == ["end", "begin", "end", "measure", "draw", "end", "end", "end"]
