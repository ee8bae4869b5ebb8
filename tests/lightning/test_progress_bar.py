# SPDX-License-Identifier: Apache-2.0
"""The private dictionary of Lightning's logger connector that progress bars draw from."""

from lightning.pytorch import Callback, Trainer

from lightning_stable._lightning import progress_bar
from tests.faulty_runs import make_batches, run


def test_the_logger_connector_still_has_progress_bar_metrics():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer._logger_connector._progress_bar_metrics == {}


def test_what_is_shown_reaches_every_progress_bar_and_stays():
    shown = []

    class Shows(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 0:
                progress_bar.show(trainer, {"incidents": str(trainer.current_epoch)})
            shown.append(trainer.progress_bar_metrics["incidents"])

    run(make_batches(2), [Shows()], epochs=2)
    assert shown == ["0", "0", "1", "1"]


def test_the_loss_is_shown_once_under_the_name_the_module_gave_it():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    progress_bar.show(trainer, {"loss": "2.000"})
    assert trainer.progress_bar_metrics == {"loss": "2.000"}
    trainer._logger_connector._progress_bar_metrics["val_loss"] = 3.0
    progress_bar.show(trainer, {"loss": "1.000"})
    assert trainer.progress_bar_metrics == {"loss": "1.000", "val_loss": 3.0}
    trainer._logger_connector._progress_bar_metrics["train_loss"] = 2.0
    progress_bar.show(trainer, {"loss": "1.000"})
    assert trainer.progress_bar_metrics == {"train_loss": 2.0, "val_loss": 3.0}
