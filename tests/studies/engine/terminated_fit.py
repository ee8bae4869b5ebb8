# SPDX-License-Identifier: Apache-2.0
"""A `fit` that SIGTERM comes to."""

import os
import signal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel


class Terminate(Callback):
    """Sends SIGTERM to this very process in the third batch, if there is a file, which is then gone."""

    def __init__(self, flag):
        self.flag = flag

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 and self.flag.exists():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGTERM)


def fit(flag):
    trainer = Trainer(
        accelerator="cpu", max_steps=4, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Terminate(flag)],
    )  # fmt: skip
    trainer.fit(BoringModel())
