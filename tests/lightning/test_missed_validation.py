# SPDX-License-Identifier: Apache-2.0
import pytest
from lightning.pytorch import Callback

from lightning_stable._lightning.missed_validation import run_missed_validation
from tests.callbacks.populations import Net, fit


class Validates(Callback):
    """Notes the steps of all validations, saves after a step, and makes up for what a resume leaves out."""

    def __init__(self, path, save_at, makes_up=True):
        self.path, self.save_at, self.makes_up = path, save_at, makes_up
        self.validated, self.modes = [], []

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step and self.makes_up:
            run_missed_validation(trainer)
            self.modes.append((trainer.training, pl_module.training))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("save_at", "made_up", "left_out"), [(4, [4, 6, 8], [6, 8]), (5, [6, 8], [6, 8])])
def test_a_validation_that_a_resume_leaves_out_is_made_up_for(tmp_path, save_at, made_up, left_out):
    path = tmp_path / "mid.ckpt"
    settings = {"max_steps": 8, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(Validates(path, save_at), Net(), **settings)
    for makes_up, expected in ((True, made_up), (False, left_out)):
        callback = Validates(path, save_at, makes_up)
        fit(callback, Net(), ckpt_path=path, **settings)
        assert callback.validated == expected
    callback = Validates(path, save_at)
    fit(callback, Net(), ckpt_path=path, **{**settings, "limit_val_batches": 0})
    assert callback.validated == []
    assert callback.modes == [(True, True)]
