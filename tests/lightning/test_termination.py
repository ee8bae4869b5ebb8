# SPDX-License-Identifier: Apache-2.0
"""SIGTERM on one of several ranks: noted, and obeyed when all have agreed. In real processes: `tests/chaos`."""

import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_stable._lightning.termination import Termination
from tests.faulty_runs import make_batches, run


class EndsAt(Callback):
    """Gets SIGTERM in one step, and obeys it in another."""

    def __init__(self, ranks, told=2, obeys=5):
        self.ranks, self.told, self.obeys = ranks, told, obeys
        self.noted, self.received, self.termination = [], [], None

    def on_train_start(self, trainer, pl_module):
        stand_in = SimpleNamespace(world_size=self.ranks, _signal_connector=trainer._signal_connector)
        self.termination = Termination(stand_in)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.told:
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.global_step == self.obeys:
            self.termination.obey()
        self.noted.append(self.termination.is_asked_for)
        self.received.append(trainer.received_sigterm)


@pytest.fixture
def handled():
    """Signals that a handler of the user's has had."""
    had = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: had.append(number))
    yield had
    signal.signal(signal.SIGTERM, before)


def test_one_of_several_ranks_goes_on_until_all_obey(handled):
    before, ends = signal.getsignal(signal.SIGTERM), EndsAt(ranks=2)
    with pytest.raises(SIGTERMException):
        run(make_batches(12), [ends])
    assert ends.noted == [False, False, True, True, True, True]
    assert ends.received == [False] * 5 + [True]
    assert handled == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_process_ends_as_lightning_would(handled):
    ends = EndsAt(ranks=1)
    with pytest.raises(SIGTERMException):
        run(make_batches(12), [ends])
    assert (ends.noted, ends.received) == ([False] * 3, [False, False, True])
    assert handled == [signal.SIGTERM]


def test_a_run_that_nobody_ends_gives_the_signals_back():
    before, ends = signal.getsignal(signal.SIGTERM), EndsAt(ranks=2, told=-1, obeys=-1)
    run(make_batches(4), [ends])
    assert not any(ends.noted)
    assert signal.getsignal(signal.SIGTERM) == before
