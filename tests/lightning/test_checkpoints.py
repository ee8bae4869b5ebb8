# SPDX-License-Identifier: Apache-2.0
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable._lightning import checkpoints


def test_what_a_checkpoint_believes_to_have_saved_can_be_changed_and_put_back(tmp_path):
    callback = ModelCheckpoint(dirpath=tmp_path)
    callback._last_global_step_saved = 7
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback])
    before = checkpoints.mark_saved(trainer)
    assert callback._last_global_step_saved == trainer.global_step == 0
    checkpoints.unmark_saved(trainer, before)
    assert callback._last_global_step_saved == 7
