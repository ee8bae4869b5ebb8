# SPDX-License-Identifier: Apache-2.0
"""The messages of Lightning that the command line leaves out, and that it leaves out no other."""

import inspect
import logging
import subprocess
import sys
import warnings

import pytest
from lightning.fabric.plugins.environments import slurm
from lightning.pytorch.trainer import setup, trainer
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector
from lightning.pytorch.utilities import _pytree, rank_zero

from lightning_stable._lightning.command_line.quiet import quiet

NAMED = {
    data_connector: "does not have many workers",
    slurm: "command is available on your system but is not used",
    _pytree: "isinstance(",
    logger_connector: "For seamless cloud",
    setup: "TPU available: ",
    trainer: "Loading `train_dataloader` to estimate number of stepping batches",
}


@pytest.mark.parametrize("module", NAMED, ids=lambda module: module.__name__)
def test_lightning_still_says_it_in_these_words(module):
    assert NAMED[module] in inspect.getsource(module)


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("The 'train_dataloader' does not have many workers which may be a bottleneck.", UserWarning),
        ("The `srun` command is available on your system but is not used. HINT: ...", UserWarning),
        ("`isinstance(treespec, LeafSpec)` is deprecated, use ... instead.", FutureWarning),
    ],
)
def test_the_named_warnings_are_left_out_within_it_only(message, category):
    with quiet():
        warnings.warn(message, category, stacklevel=1)
    with pytest.warns(category):
        warnings.warn(message, category, stacklevel=1)


@pytest.mark.parametrize("message", ["LeafSpec went away", "Your workers are slow", "`srun` failed"])
def test_other_warnings_are_shown(message):
    with quiet(), pytest.warns(UserWarning, match=message):
        warnings.warn(message, UserWarning, stacklevel=1)


def test_the_named_messages_are_left_out_within_it_only(caplog):
    caplog.set_level(logging.INFO)
    with quiet():
        rank_zero.rank_zero_info("TPU available: False, using: 0 TPU cores")
        rank_zero.rank_zero_info("💡 Tip: For seamless cloud logging, try litlogger")
        rank_zero.rank_zero_info("TPU available: True, using: 8 TPU cores")
        rank_zero.rank_zero_info("GPU available: %s", True)
    rank_zero.rank_zero_info("TPU available: False, using: 0 TPU cores")
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "available" in text] == [
        "TPU available: True, using: 8 TPU cores",
        "GPU available: True",
        "TPU available: False, using: 0 TPU cores",
    ]
    assert not any("litlogger" in text for text in said)


def test_an_error_within_it_leaves_nothing_behind():
    log, filters = logging.getLogger("lightning.pytorch.utilities.rank_zero"), list(warnings.filters)
    with pytest.raises(RuntimeError, match="stop"), quiet():
        raise RuntimeError("stop")
    assert log.filters == []
    assert warnings.filters == filters


def test_importing_the_package_silences_nothing():
    """The filters are set by the command line alone."""
    code = (
        "import warnings, logging; before = list(warnings.filters); import lightning.pytorch, torch.utils.tensorboard;"
        "between = list(warnings.filters); import lightning_stable.cli, lightning_stable._lightning.command_line.cli;"
        "assert warnings.filters == between;"
        "assert not logging.getLogger('lightning.pytorch.utilities.rank_zero').filters"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
