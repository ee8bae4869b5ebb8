# SPDX-License-Identifier: Apache-2.0
"""A population in one run with other callbacks: their state is each member's own, or they are refused."""

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, WeightAveraging

from lightning_stable.callbacks import MomentumReset, PopulationBasedTraining, ScheduleFree
from lightning_stable.guard import SpikeGuard
from tests.callbacks.populations import Net, fit, pbt, samples_of, weights


def test_the_state_of_other_callbacks_is_each_members_own():
    resets = MomentumReset(every_n_steps=3, warmup_steps=0)
    fit(pbt(population=2, interval=2), callbacks=[resets], max_steps=8)
    assert resets.state_dict()["steps_taken"] == [4]  # its own of the 8


def test_averaged_weights_are_each_members_own_and_the_bests_in_the_end():
    average = WeightAveraging(use_buffers=True)
    model, _ = fit(pbt(population=2, interval=2), callbacks=[average], max_steps=4)
    alone = [Net(kind=lambda p, lr, rate=rate: torch.optim.AdamW(p, lr=rate)) for rate in first_rates(2)]
    ends = []
    for member, net in enumerate(alone):
        fit(None, net, callbacks=[WeightAveraging(use_buffers=True)], samples=samples_of([member]), max_steps=2)
        ends.append(weights(net))
    assert any(all(map(torch.equal, weights(model), end)) for end in ends)


def first_rates(count):
    return [pbt(population=count).settings.beginning(member)["lr"] for member in range(count)]


def test_early_stopping_waits_for_the_whole_population():
    stopping = EarlyStopping("val_loss", patience=2, min_delta=100.0)
    search = pbt(monitor="val_loss")
    _, trainer = fit(search, callbacks=[stopping], val_check_interval=2, check_val_every_n_epoch=None, max_steps=40)
    assert trainer.global_step == 6
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda own: [SpikeGuard(), own], "`SpikeGuard` and `PopulationBasedTraining` cannot work in one run"),
        (lambda own: [own, SpikeGuard()], "cannot work in one run"),
        (lambda own: [own, StochasticWeightAveraging(0.1)], "a schedule of its own"),
        (lambda own: [WeightAveraging(), own], r"callbacks=\[PopulationBasedTraining\(\.\.\.\), WeightAveraging"),
        (lambda own: [ScheduleFree(), own], "must come before `ScheduleFree`"),
        (lambda own: [own, _Another({"lr": [0.1, 0.2]})], "one `PopulationBasedTraining` only"),
    ],
)
def test_what_cannot_work_beside_it_is_refused(others, message):
    with pytest.raises(ValueError, match=message):
        fit(None, callbacks=others(pbt()))


_Another = type("_Another", (PopulationBasedTraining,), {"state_key": "another"})
