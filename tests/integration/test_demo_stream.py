# SPDX-License-Identifier: Apache-2.0
"""What the demo claims, at full length: two recipes on the same corrupted stream, and one of them on a clean one."""

import math

import pytest
import yaml

from lightning_stable.studies.recipes import find_recipe
from lightning_stable.studies.run_log import read_run
from tests.small_fit import LIGHTNING_CLI_WARNS, full_fit

pytestmark = pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    return full_fit(tmp_path_factory.mktemp("guarded"), "charlm_stable")


def val_losses(log):
    return [value for _, value in log.scalars["val_loss"]]


def test_the_guard_answers_every_bad_batch_of_the_stream(guarded):
    corrupt = yaml.safe_load(find_recipe("charlm_stable").path.read_text())["data"]["init_args"]["corrupt"]
    bad = {batch for corruption in corrupt for batch in corruption["batches"]}
    assert len(bad) == 13
    assert bad <= {incident["step"] for incident in guarded.incidents}


def test_the_guarded_run_ends_within_two_percent_of_a_run_on_the_clean_stream(guarded, tmp_path):
    clean = full_fit(tmp_path, "charlm_stable", "--data.corrupt=null")
    assert not clean.incidents
    assert val_losses(guarded)[-1] <= 1.02 * val_losses(clean)[-1]


def test_the_unguarded_baseline_is_worse_all_along_and_ends_in_nan(guarded, tmp_path):
    unguarded = full_fit(tmp_path, "charlm_adamw")
    *before, last = val_losses(unguarded)
    assert math.isnan(last)
    assert all(ours < 0.95 * theirs for ours, theirs in zip(val_losses(guarded), before, strict=False))
    assert read_run(unguarded.folder).last_step == 799
