# SPDX-License-Identifier: Apache-2.0
"""SIGTERM in a run on several ranks: noted when it comes, and obeyed by all of them after the same step.

Lightning's own handler talks to the other ranks at once. They are elsewhere, and wait for something else: the run hangs
or dies with what the two have made of each other's messages.
"""

import signal
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


class Termination:
    """Stands in for Lightning's handler until the trainer gives the signals back; in one process Lightning's stays.

    A handler that was there before Lightning's is still called. Where Lightning has registered none, as in a thread
    that is not the main one, there is nothing to stand in for.

    Args:
        trainer: The trainer in its `fit`, whose signals are registered.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.is_asked_for = False
        self._connector = trainer._signal_connector
        handlers = getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", [])
        for index, handler in enumerate(handlers):
            if trainer.world_size > 1 and handler == self._connector._sigterm_notifier_fn:
                handlers[index] = self._note

    def obey(self) -> None:
        """Let Lightning end the run after this batch; all ranks must do so at the same one."""
        if not self._connector.received_sigterm:
            rank_zero_info("SpikeGuard: SIGTERM was received, all ranks end after this step.")
        self._connector.received_sigterm = True

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.is_asked_for = True
