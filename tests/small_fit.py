# SPDX-License-Identifier: Apache-2.0
"""Recipes by the command line, shrunken to a second or at full length."""

import lightning.pytorch  # noqa: F401  (here, so that its log handler gets a stream that outlives a single test)

from lightning_stable.cli import main
from lightning_stable.studies.run_log import RunLog, read_run

LIGHTNING_CLI_WARNS = "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"  # of an API that it still uses

SMALLER = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--model.n_layer=1",
    "--model.d_model=16",
    "--model.n_head=2",
    "--model.context=8",
    "--data.context=8",
    "--data.batch_size=2",
)


def small_fit(folder, *arguments, recipe="charlm_adamw", steps=3):
    """The exit status of `fit --recipe`, its logs in `folder/run`."""
    where = (f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=run", "--trainer.logger.version=0")
    return main(["fit", "--recipe", recipe, *SMALLER, *where, f"--trainer.max_steps={steps}", *arguments])


def full_fit(folder, recipe, *arguments) -> RunLog:
    """What a recipe logs when it is run as it is."""
    where = (f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=run", "--trainer.logger.version=0")
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    assert main(["fit", "--recipe", recipe, *quiet, *where, *arguments]) == 0
    return read_run(folder / "run" / "version_0")
