# SPDX-License-Identifier: Apache-2.0
"""Every schedule under the guard: what it undoes has not moved the schedule either."""

import inspect

import pytest
import torch

import lightning_stable.schedules as room
from lightning_stable.guard import Rollback, SkipStep
from lightning_stable.schedules import Profile, ProfileLR
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, without

PROFILES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Profile) and not inspect.isabstract(member)
]
CURVES = {
    "warmup": {"warmup_steps": 6},
    "radam": {"warmup": "radam"},
    "50-75": {"sample_at": [0.5, 0.75]},
    "tokens": {"unit": "tokens"},
}


class Scheduled(Net):
    """A network whose schedule counts what batches hold, and that is told to finish in mid-run."""

    profile: type[Profile]
    curve: dict

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, betas=(0.9, 0.8))
        scheduler = ProfileLR(optimizer, self.profile(), total_steps=30, **self.curve)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_batch_start(self, batch, batch_idx):
        scheduler = self.lr_schedulers()
        if scheduler.unit == "tokens":
            scheduler.increment = 1 + int(batch["x"][0, 0].nan_to_num().abs() * 3) % 3
        if scheduler.last_epoch == 14 and scheduler._cooldown is None:
            scheduler.cooldown(5)


def outcome(batches, callbacks, profile, curve):
    def model():
        made = Scheduled()
        made.profile, made.curve = profile, CURVES[curve]
        return made

    return run(batches, callbacks, model=model, epochs=1)


@pytest.mark.parametrize(
    ("curve", "response"),
    [
        ("warmup", Rollback(mode="replay", times=9)),
        ("radam", SkipStep(times=9)),
        ("50-75", SkipStep(times=9)),
        ("tokens", Rollback(mode="replay", times=9)),
    ],
    ids=[*CURVES],
)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.__name__)
def test_the_guarded_run_is_one_whose_loader_never_held_the_bad_batches(profile, curve, response):
    bad = {9, 16}
    actual = outcome(make_batches(20, bad), [guard(response, snapshot_every=4)], profile, curve)
    assert_same(actual, outcome(without(make_batches(20), bad), [], profile, curve))
