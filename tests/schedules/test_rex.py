# SPDX-License-Identifier: Apache-2.0
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_stable.schedules import REXLR


def reference_rex_rate(base, step, total_steps, warmup_steps, beta, min_ratio):
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    z = max(0.0, 1.0 - (step - warmup_steps) / (total_steps - warmup_steps))
    return base * (min_ratio + (1.0 - min_ratio) * z / ((1.0 - beta) + beta * z))


def sgd(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def advance(scheduler, steps):
    """The rates that `steps` optimizer steps run at."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize(("beta", "min_ratio"), [(0.5, 0.0), (0.9, 0.0), (0.0, 0.1), (0.5, 1.0)])
def test_every_step_runs_at_the_rate_of_the_equation_also_after_the_end(warmup_steps, beta, min_ratio):
    scheduler = REXLR(sgd(0.1), 40, warmup_steps=warmup_steps, beta=beta, min_ratio=min_ratio)
    expected = [reference_rex_rate(0.1, step, 40, warmup_steps, beta, min_ratio) for step in range(50)]
    assert [rate for (rate,) in advance(scheduler, 50)] == pytest.approx(expected, abs=1e-15)


def test_the_paper_s_curve_passes_through_its_known_values():
    rates = [rate for (rate,) in advance(REXLR(sgd(1.0), total_steps=4), 6)]
    assert rates == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0, 0])


def test_the_rate_stays_above_linear_decay():
    rates = advance(REXLR(sgd(1.0), total_steps=100), 100)
    assert all(rate > 1 - step / 100 for step, (rate,) in enumerate(rates) if step > 0)


def test_the_warmup_starts_above_zero_and_its_last_step_runs_at_the_base_rate():
    rates = [rate for (rate,) in advance(REXLR(sgd(1.0), total_steps=10, warmup_steps=4), 5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_every_group_keeps_its_own_base_rate():
    for step, rates in enumerate(advance(REXLR(sgd(0.1, 0.01), total_steps=10, warmup_steps=2), 12)):
        factor = reference_rex_rate(1.0, step, 10, 2, 0.5, 0.0)
        assert rates == pytest.approx([0.1 * factor, 0.01 * factor])


def test_a_rate_that_somebody_overwrote_is_back_at_the_next_step():
    scheduler = REXLR(sgd(1.0), total_steps=4)
    scheduler.optimizer.param_groups[0]["lr"] = 123.0
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([6 / 7])


def test_resuming_in_mid_run_is_exact(tmp_path):
    straight = REXLR(sgd(0.1, 0.3), total_steps=30, warmup_steps=5)
    expected = advance(straight, 30)
    first = REXLR(sgd(0.1, 0.3), total_steps=30, warmup_steps=5)
    advance(first, 13)
    torch.save((first.state_dict(), first.optimizer.state_dict()), tmp_path / "state.pt")
    state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = REXLR(sgd(0.1, 0.3), total_steps=99)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(optimizer_state)
    assert second.total_steps == 30
    assert torch.equal(torch.tensor(advance(second, 17)), torch.tensor(expected[13:]))


def test_last_epoch_places_a_new_scheduler_in_mid_run():
    straight = REXLR(sgd(0.1), total_steps=30)
    advance(straight, 10)
    optimizer = sgd(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert REXLR(optimizer, total_steps=30, last_epoch=9).get_last_lr() == straight.get_last_lr()


def test_closed_form_and_chained_form_are_one():
    scheduler = REXLR(sgd(0.1), total_steps=30)
    advance(scheduler, 10)
    assert scheduler._get_closed_form_lr() == scheduler.get_lr() == scheduler.get_last_lr()


def test_a_group_added_later_follows_the_schedule_from_its_own_base_rate():
    scheduler = REXLR(sgd(1.0), total_steps=4)
    advance(scheduler, 1)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5})
    assert scheduler.optimizer.param_groups[1]["lr"] == 0.5
    rates = advance(scheduler, 3)
    assert rates[1:] == [pytest.approx([2 / 3, 1 / 3]), pytest.approx([2 / 5, 1 / 5])]


def test_a_tensor_rate_stays_the_same_tensor():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    scheduler = REXLR(optimizer, total_steps=4, warmup_steps=2)
    advance(scheduler, 3)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.1 * reference_rex_rate(1.0, 3, 4, 2, 0.5, 0.0))
    assert scheduler.base_lrs[0].item() == pytest.approx(0.1)


def test_it_works_inside_torch_s_sequential_schedule():
    optimizer = sgd(1.0)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecation of `step(epoch)`, which SequentialLR calls
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [constant, REXLR(optimizer, 4)], milestones=[2])
        rates = [rate for (rate,) in advance(scheduler, 6)]
    assert rates == pytest.approx([0.5, 0.5, 1, 6 / 7, 2 / 3, 2 / 5])


def test_total_steps_may_come_after_construction():
    late = REXLR(sgd(1.0), warmup_steps=3)
    assert late.total_steps is None
    rates = advance(late, 2)
    late.total_steps = 10
    rates += advance(late, 8)
    assert rates == advance(REXLR(sgd(1.0), total_steps=10, warmup_steps=3), 10)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_leaving_the_warmup_without_total_steps_says_how_to_set_it_and_moves_nothing(warmup_steps):
    scheduler = REXLR(sgd(1.0), warmup_steps=warmup_steps)
    advance(scheduler, warmup_steps)
    scheduler.optimizer.step()
    before = scheduler.last_epoch
    with pytest.raises(RuntimeError, match=r"set `scheduler\.total_steps = n` \(in Lightning: `trainer\."):
        scheduler.step()
    assert scheduler.last_epoch == before
    scheduler.total_steps = 10
    scheduler.step()
    assert scheduler.last_epoch == before + 1


def test_a_run_that_ends_inside_the_warmup_warns_and_follows_the_warmup():
    scheduler = REXLR(sgd(1.0), warmup_steps=10)
    with pytest.warns(UserWarning, match="the run ends inside the warmup"):
        scheduler.total_steps = 4
    rates = [rate for (rate,) in advance(scheduler, 14)]
    assert rates == pytest.approx([0.1 * step for step in range(1, 11)] + [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, r"`REXLR\(total_steps=\.\.\.\)` must be a whole number of at least 1, got 0"),
        ({"total_steps": float("inf")}, r"got inf\. An endless run has no length: set `Trainer\(max_steps"),
        ({"warmup_steps": -1}, r"`REXLR\(warmup_steps=\.\.\.\)` must be at least 0, got -1"),
        ({"beta": 1.0}, r"`REXLR\(beta=\.\.\.\)` must be in \[0, 1\), got 1\.0"),
        ({"min_ratio": 1.5}, r"`REXLR\(min_ratio=\.\.\.\)` must be in \[0, 1\], got 1\.5"),
        (
            {"total_steps": 5, "warmup_steps": 5},
            r"`REXLR\(warmup_steps=\.\.\.\)` must be less than `total_steps` \(5\)",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        REXLR(sgd(1.0), **arguments)


def test_a_bad_total_steps_is_refused_by_the_setter_too():
    scheduler = REXLR(sgd(1.0))
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
        scheduler.total_steps = 0


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = REXLR(optimizer, warmup_steps=2)
        scheduler.total_steps = self.trainer.estimated_stepping_batches
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_a_lightning_run_steps_along_it():
    model = Model()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(5, 2)))
    assert model.rates == pytest.approx([reference_rex_rate(0.1, step, 10, 2, 0.5, 0.0) for step in range(10)])
