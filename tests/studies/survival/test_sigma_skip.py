# SPDX-License-Identifier: Apache-2.0
"""OLMo's rule, once more with NumPy; and what it does to a run, faults included."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_stable.optim import StepGate
from lightning_stable.studies.survival.sigma_skip import SigmaSkip


def restated(losses, norms, window, sigmas):
    """Whether each step is taken."""
    taken = []
    for now in range(len(losses)):
        oldest = max(0, now - window)
        if now - oldest + 1 < max(3, window // 2):
            taken.append(True)
            continue
        near = []
        for values in (losses, norms):
            before = np.array(values[oldest:now], dtype=np.float64)
            near.append(bool(values[now] - before.mean() <= sigmas * before.std(ddof=1)))
        taken.append(all(near))
    return taken


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("bad", [50.0, math.inf, math.nan, 1e200])
def test_the_rule_is_that_of_a_slow_restatement(bad):
    draw = np.random.default_rng(0)
    losses, norms = (3.0 + draw.normal(size=120)).tolist(), (1.0 + 0.1 * draw.normal(size=120)).tolist()
    losses[40], norms[80], losses[81] = bad, bad, bad
    rule = SigmaSkip(window=16, sigmas=3.0)
    taken = [rule.is_ok(loss, norm) for loss, norm in zip(losses, norms, strict=True)]
    assert taken == restated(losses, norms, window=16, sigmas=3.0)
    assert not taken[40]
    assert not taken[80]


def test_one_nan_has_the_next_window_of_healthy_steps_skipped():
    rule = SigmaSkip(window=8)
    taken = [rule.is_ok(math.nan if step == 20 else 2.0 + 0.1 * (step % 3), 1.0) for step in range(40)]
    assert [step for step, ok in enumerate(taken) if not ok] == list(range(20, 29))


def test_a_spike_hides_the_next_one():
    rule = SigmaSkip(window=8)
    losses = [2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 9.0, 8.0]
    assert [rule.is_ok(loss, 1.0) for loss in losses][-2:] == [False, True]


class Line(LightningModule):
    """Its loss is the batch's number times a weight, so that a batch is also its gradient."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.trace = []

    def training_step(self, batch):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_end(self, *_):
        state = self.optimizers().optimizer.state[self.weight]
        self.trace.append((self.weight.detach().clone(), state["exp_avg"].clone(), int(state["step"])))


def fit(values, rule):
    module = Line()
    batches = [torch.full((2,), value) for value in values]
    trainer = Trainer(
        max_epochs=1,
        callbacks=[rule],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, trainer


def test_a_skipped_step_moves_nothing_but_schedule_and_counter():
    rule = SigmaSkip(window=4)
    module, trainer = fit([1.0, 1.1, 0.9, 1.0, 1e3, 1.0], rule)
    before, after = module.trace[3], module.trace[4]
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2] == after[2] == 4
    assert (trainer.global_step, trainer.lr_scheduler_configs[0].scheduler.last_epoch) == (6, 6)
    assert module.trace[5][2] == 5
    assert rule.steps_skipped == 1
    assert rule.seconds_lost > 0
    assert StepGate.of(trainer.optimizers[0]) is None


def test_a_gradient_that_is_not_finite_ruins_the_weights_as_it_does_in_olmo():
    module, _ = fit([1.0, 1.1, 0.9, 1.0, math.nan], SigmaSkip(window=4))
    assert module.weight.isnan().all()
