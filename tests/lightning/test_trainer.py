# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_stable._lightning.trainer import (
    callbacks_of,
    gradient_scaler,
    log_every_n_steps,
    optimizer_steps_of_the_run,
)
from lightning_stable.testbeds import CharLM, PythonTextDataModule
from tests.faulty_runs import assert_same


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


class AsksForItsLength(CharLM):
    def __init__(self):
        super().__init__(n_layer=1, n_head=1, d_model=8, context=8)

    def configure_optimizers(self):
        assert optimizer_steps_of_the_run(self.trainer) == 16
        return super().configure_optimizers()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [3, 9])
def test_asking_for_the_length_of_the_run_does_not_keep_a_loader_from_its_place(tmp_path, step):
    def train(folder, ckpt_path=None):
        seed_everything(0, verbose=False)
        model = AsksForItsLength()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        every_step = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, callbacks=[every_step], **quiet)
        trainer.fit(model, PythonTextDataModule(context=8, batch_size=2, batches_per_epoch=8), ckpt_path=ckpt_path)
        return dict(model.state_dict())

    expected = train("whole")
    assert_same(train("resumed", tmp_path / "whole" / f"step={step}.ckpt"), expected)
