# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.guard import SkipStep
from lightning_stable.testing import InjectFault
from lightning_stable.testing.run_record import RunRecord
from tests.faulty_runs import assert_same, make_batches, run
from tests.guard.test_spike_guard import SETTINGS, arguments_of, guard, kind_of
from tests.testing.watched_runs import Watch


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_changes_nothing_and_sees_every_step(setting):
    batches, record = make_batches(6, kind=kind_of(setting)), RunRecord()
    assert_same(run(batches, [record], **arguments_of(setting)), run(batches, **arguments_of(setting)))
    assert list(record.steps) == list(range(12))
    assert all(step.has_finite_loss and step.has_stepped and not step.is_spike for step in record.steps.values())


@pytest.mark.parametrize("setting", ["fp32", "16-mixed", "manual", "manual 16-mixed"])
def test_losses_are_those_of_the_training_step(setting):
    record, plain, watch = RunRecord(), RunRecord(), Watch()
    run(make_batches(6), [record, watch], epochs=1, **arguments_of(setting))
    run(make_batches(6), [plain], epochs=1)
    losses = [step.loss for step in record.steps.values()]
    assert losses == pytest.approx([step.loss for step in plain.steps.values()], rel=0.02)
    if "manual" not in setting:
        assert losses == pytest.approx(watch.outputs, rel=1e-6)


def test_the_loss_of_an_accumulated_step_is_the_mean_over_its_batches():
    record, watch = RunRecord(), Watch()
    run(make_batches(6), [record, watch], accumulate_grad_batches=2, epochs=1)
    assert [step.loss for step in record.steps.values()] == pytest.approx(
        [watch.outputs[i] + watch.outputs[i + 1] for i in (0, 2, 4)]  # Lightning's outputs are divided by 2
    )


@pytest.mark.parametrize(
    ("setting", "kind", "spike", "overflow"),
    [
        ("fp32", "nan_loss", [3], []),
        ("fp32", "nan_gradient", [3], []),
        ("16-mixed", "nan_loss", [3], []),
        ("16-mixed", "inf_gradient", [], [3]),
        ("manual 16-mixed", "nan_gradient", [], [3]),
        ("manual", "inf_gradient", [3], []),
    ],
)
def test_spikes_and_overflows_are_told_apart(setting, kind, spike, overflow):
    record = RunRecord()
    run(make_batches(6), [guard(SkipStep(times=9)), InjectFault(kind, step=3), record], **arguments_of(setting))
    assert [number for number, step in record.steps.items() if step.is_spike] == spike
    assert [number for number, step in record.steps.items() if step.is_overflow] == overflow
    assert math.isfinite(record.steps[4].loss)
