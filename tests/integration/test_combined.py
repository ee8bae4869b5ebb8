# SPDX-License-Identifier: Apache-2.0
"""All callbacks in one run, ours and Lightning's, on a stream with bad batches."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_stable import AttentionEntropyMonitor, MomentumReset, ProfileLR, SpikeGuard
from lightning_stable.guard import Halt, Rollback, SkipStep
from lightning_stable.monitors import GradientNormMonitor
from lightning_stable.testbeds import CharLM, Corruption, PythonTextDataModule
from tests.faulty_runs import assert_same

BAD = [7, 8, 30, 41]  # of 2 epochs of 25 batches


class Scheduled(CharLM):
    """Under REX, with dropout, so that random numbers matter too."""

    def __init__(self):
        super().__init__(n_layer=2, n_head=2, d_model=16, context=8, dropout=0.1, lr=3e-3)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = ProfileLR(optimizer, total_steps=46, warmup_steps=5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(folder, response, **data_arguments):
    seed_everything(0, verbose=False)
    model = Scheduled()
    guard = SpikeGuard(ladder=[response, Halt()], snapshot_every=6)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[
            guard,
            MomentumReset(every_n_steps=12, warmup_steps=4),
            AttentionEntropyMonitor(every_n_steps=5),
            GradientNormMonitor(),
            LearningRateMonitor(),
            EarlyStopping("val_loss", patience=5),
            EMAWeightAveraging(decay=0.9),
            ModelCheckpoint(folder / "checkpoints", every_n_train_steps=10, save_top_k=-1),
        ],
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    data = PythonTextDataModule(context=8, batch_size=2, batches_per_epoch=25, val_batches=2, **data_arguments)
    trainer.fit(model, data)
    optimizer = trainer.optimizers[0]
    return guard, {
        "weights": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "steps": trainer.global_step,
        "random": torch.get_rng_state(),
        "val_loss": trainer.callback_metrics["val_loss"],
    }


@pytest.mark.parametrize("response", [SkipStep(times=9), Rollback(mode="replay", times=9)], ids=["skip", "replay"])
def test_together_they_end_as_if_the_bad_batches_had_not_been_there(tmp_path, response):
    corrupt = [Corruption("nan_embedding", batches=BAD)]
    guard, outcome = train(tmp_path / "corrupt", response, corrupt=corrupt)
    assert len(guard.incidents) == len(BAD)
    nothing, expected = train(tmp_path / "clean", response, drop=BAD)
    assert not nothing.incidents
    assert expected["steps"] == 50 - len(BAD)
    assert all(torch.isfinite(value).all() for value in outcome["weights"].values())
    assert_same(outcome, expected)
