# SPDX-License-Identifier: Apache-2.0
"""Run the validation that a resumed run would leave out.

A checkpoint that is written when a batch has ended, as `ModelCheckpoint(every_n_train_steps=...)` does, is older than
the validation after this batch; Lightning takes that for done when it resumes.

Private attributes: `_should_check_val_fx` and `val_loop` of `fit_loop.epoch_loop`, `_data_fetcher` of `fit_loop`, and
`_first_loop_iter` of the logger connector, which the loop itself saves around a validation.
"""

from lightning.pytorch import Trainer


def run_missed_validation(trainer: Trainer) -> None:
    """Validate now if the last batch before the checkpoint was one with a validation; for `on_train_start`."""
    fit_loop = trainer.fit_loop
    loop, connector = fit_loop.epoch_loop, trainer._logger_connector
    assert fit_loop._data_fetcher is not None
    if not trainer.enable_validation or not loop._should_check_val_fx(fit_loop._data_fetcher):
        return
    first_loop_iter = connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.restarting = False
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first_loop_iter
