# SPDX-License-Identifier: Apache-2.0
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_stable._lightning.trainer import callbacks_of, gradient_scaler, log_every_n_steps


def test_what_the_connectors_hang_on_the_trainer_is_there():
    callback = Callback()
    scaler = torch.amp.GradScaler("cpu")
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        callbacks=[callback], log_every_n_steps=7, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **quiet
    )
    assert callback in callbacks_of(trainer)
    assert log_every_n_steps(trainer) == 7
    assert gradient_scaler(trainer) is scaler
    assert gradient_scaler(Trainer(**quiet)) is None
