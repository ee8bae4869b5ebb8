# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

import lightning_stable.callbacks.training_budget as module
from lightning_stable.callbacks import AdaptiveBatchSize, TrainingBudget
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.schedules import ProfileLR
from tests.callbacks.noisy_runs import Noisy, Probe, fit, samples


def in_samples(optimizer, trainer):
    return ProfileLR(optimizer, "Linear", unit="samples", warmup_steps=20)


def spent(budget, **settings):
    """The model, what was seen of every step, and the trainer of a run without any other end."""
    model, seen = settings.pop("model", None) or Noisy(in_samples), Seen(budget)
    callbacks = settings.pop("callbacks", [budget])
    trainer = fit(*callbacks, seen, model=model, **{"max_epochs": -1, "data": samples(100), **settings})
    return model, seen, trainer


class Seen(Probe):
    def __init__(self, budget):
        super().__init__()
        self.budget, self.used, self.positions = budget, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.used.append(self.budget.used)
        self.positions.append([config.scheduler.position for config in trainer.lr_scheduler_configs])


# Samples


@pytest.mark.parametrize(
    ("total", "batch_size", "accumulated", "steps", "used"),
    [
        (40, 4, 1, 10, 40),
        (41, 4, 1, 11, 44),
        (48, 4, 3, 4, 48),
        (50, 4, 3, 5, 60),
        (250, 7, 2, 20, 256),
        (1, 4, 1, 1, 4),
    ],
)
def test_the_run_ends_with_the_step_that_uses_the_budget_up(total, batch_size, accumulated, steps, used):
    budget = TrainingBudget(total)
    settings = {"batch_size": batch_size, "accumulate_grad_batches": accumulated}
    _, seen, trainer = spent(budget, model=Noisy(), **settings)  # 100 samples an epoch; of 7 the last batch has 2
    assert (trainer.global_step, budget.used) == (steps, used)
    assert seen.used[-1] == used
    assert isinstance(budget.state_dict()["used"], int)


def test_schedules_are_where_the_data_is_and_end_with_it():
    _, seen, trainer = spent(TrainingBudget(250), batch_size=7, accumulate_grad_batches=2)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == 250
    assert [[used] for used in seen.used] == seen.positions
    assert schedule.get_last_lr() == [0.0]
    assert seen.rates[0] == pytest.approx(0.01 * 14 / 20)  # the warmup's first step, at its end
    for position, rate in zip((14, 28, 42), seen.rates[1:4], strict=True):
        assert rate == pytest.approx(0.01 * (1 - max(0, position - 20) / 230))


def test_a_total_that_the_schedule_has_is_kept_and_other_units_are_left_alone():
    def two(optimizer, trainer):
        return ProfileLR(optimizer, "Linear", unit="samples", total_steps=80)

    _, _, trainer = spent(TrainingBudget(40), model=Noisy(two))
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 80
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.005]

    def steps(optimizer, trainer):
        return ProfileLR(optimizer, "Linear", total_steps=20)

    _, seen, _ = spent(TrainingBudget(40), model=Noisy(steps))
    assert seen.positions == [[step + 1] for step in range(10)]


def test_without_a_total_it_only_counts():
    budget = TrainingBudget()
    _, _, trainer = spent(budget, model=Noisy(), max_epochs=2)
    assert (trainer.global_step, budget.used) == (50, 200)


def test_a_run_that_ends_sooner_is_told_of():
    with pytest.warns(UserWarning, match=r"ended with 100 of the 1000 samples of `TrainingBudget` used.*max_epochs=-1"):
        spent(TrainingBudget(1000), max_epochs=1)
    with pytest.warns(UserWarning, match=r"ended with 100 of the 1234567 samples"):
        spent(TrainingBudget(1_234_567), max_epochs=1)


def test_what_is_used_is_logged_at_lightnings_pace_and_at_the_end():
    _, seen, _ = spent(TrainingBudget(52), log_every_n_steps=5)
    assert list(dict.fromkeys(seen.logged["stability/budget_used"])) == [20, 40, 52]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("without", [0, 1, 2])
def test_batches_beside_one_without_a_loss_are_counted_wherever_it_is_in_its_window(without):
    class Sometimes(Noisy):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == without else super().training_step(batch, batch_idx)

    budget = TrainingBudget(40)
    _, seen, trainer = spent(budget, model=Sometimes(in_samples), accumulate_grad_batches=3)
    assert budget.used == 40
    assert trainer.global_step == 5
    assert seen.positions[2::3] == [[8], [16], [24], [32], [40]]
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_uses_nothing():
    class Skips(Noisy):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    budget = TrainingBudget(40)
    _, seen, _ = spent(budget, model=Skips())
    assert seen.sizes == [4] * 19
    assert budget.used == 40


@pytest.mark.parametrize("first", ["budget", "growth"])
def test_it_counts_what_a_growing_batch_uses(first):
    budget, growth = TrainingBudget(400), AdaptiveBatchSize(every_n_steps=1, eta=0.1)
    callbacks = [budget, growth] if first == "budget" else [growth, budget]
    _, seen, trainer = spent(budget, callbacks=callbacks, data=samples(400))
    assert max(seen.accumulated) > 2
    assert budget.used == trainer.lr_scheduler_configs[0].scheduler.position == 400
    ends = [4 * sum(seen.accumulated[: step + 1]) for step in range(len(seen.accumulated))]
    assert sorted(set(seen.used) - {0}) == ends


class ByHand(Noisy):
    """Two backward passes and one step of optimizer and schedule for each batch."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        for half in batch.chunk(2):
            self.manual_backward((half @ self.weight).mean())
        optimizer.step()
        schedule.step()


def test_by_hand_a_batch_is_a_step():
    budget = TrainingBudget(40)
    _, seen, trainer = spent(budget, model=ByHand(in_samples))
    assert trainer.global_step == 10
    assert [[used] for used in seen.used] == seen.positions == [[4 * step + 4] for step in range(10)]


# Tokens


class Tokens(Noisy):
    def training_step(self, batch, batch_idx):
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        return (self.weight[: ids.shape[-1]] * ids).mean()


def text(lengths, wrap=lambda ids: ids):
    return DataLoader([wrap(torch.ones(2, length, dtype=torch.int64)) for length in lengths], batch_size=None)


def test_tokens_are_counted_whatever_the_length_is():
    lengths = [3, 5, 8, 2, 9]
    budget = TrainingBudget(30, unit="tokens")
    _, seen, trainer = spent(budget, model=Tokens(), loader=text(lengths))
    assert trainer.global_step == 3
    assert seen.used == [6, 16, 32]


def test_a_key_says_which_tensor_holds_them():
    loader = text([3, 5, 8], lambda ids: {"weight": torch.ones(2), "input_ids": ids})
    budget = TrainingBudget(30, unit="tokens", key="input_ids")
    _, seen, _ = spent(budget, model=Tokens(), loader=loader)
    assert seen.used == [6, 16, 32]
    message = (
        r"does not find tokens to count in the batch \(a dict with 'weight', 'input_ids'\). Name an integer tensor by"
    )
    with pytest.raises(RuntimeError, match=message):
        spent(TrainingBudget(30, unit="tokens"), model=Tokens(), loader=loader)
    with pytest.raises(RuntimeError, match="no 'ids' in the batch, but 'weight', 'input_ids'"):
        spent(TrainingBudget(30, unit="tokens", key="ids"), model=Tokens(), loader=loader)
    with pytest.raises(RuntimeError, match=r"to count at `key='weight'` of the batch"):
        spent(TrainingBudget(30, unit="tokens", key="weight"), model=Tokens(), loader=loader)


def test_features_are_no_tokens():
    with pytest.raises(RuntimeError, match=r"in the batch \(a tensor of float64 \(4, 64\)\)"):
        spent(TrainingBudget(30, unit="tokens"))


# Resume and rollback


class Save(Callback):
    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("step", [3, 8, 10])
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, step):
    budget = TrainingBudget(70)
    straight, seen, _ = spent(budget, callbacks=[budget, Save(tmp_path, [step])], batch_size=7)
    resumed, later, trainer = spent(
        again := TrainingBudget(70),
        data=samples(100).roll(-7 * step, 0),
        batch_size=7,
        ckpt_path=tmp_path / f"{step}.ckpt",
    )
    assert torch.equal(straight.weight, resumed.weight)
    assert later.used == seen.used[step:]
    assert again.state_dict() == budget.state_dict() == {"unit": "samples", "used": 70}
    assert trainer.lr_scheduler_configs[0].scheduler.position == 70
    assert trainer.global_step == 10


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_checkpoint_without_it_goes_on_from_the_schedules_position(tmp_path):
    budget = TrainingBudget(70)
    spent(budget, callbacks=[budget, Save(tmp_path, [3])], batch_size=7)
    checkpoint = torch.load(tmp_path / "3.ckpt", weights_only=True)
    del checkpoint["callbacks"]["TrainingBudget"]
    torch.save(checkpoint, tmp_path / "3.ckpt")
    _, later, _ = spent(TrainingBudget(70), batch_size=7, ckpt_path=tmp_path / "3.ckpt")
    assert later.used == [28, 35, 42, 49, 56, 63, 70]


def test_a_checkpoint_that_counts_in_another_unit_is_refused(tmp_path):
    budget = TrainingBudget(70)
    spent(budget, callbacks=[budget, Save(tmp_path, [3])], model=Noisy())
    with pytest.raises(RuntimeError, match=r"counts samples, but `TrainingBudget\(unit=...\)` is 'seconds'"):
        spent(TrainingBudget(70, unit="seconds"), model=Noisy(), ckpt_path=tmp_path / "3.ckpt")


@pytest.mark.parametrize("order", ["guard first", "guard last"])
@pytest.mark.parametrize(
    ("response", "snapshot_every"),
    [(SkipStep(times=99), 3), (Rollback(times=99, mode="replay"), 3), (Rollback(times=99, mode="skip"), 1)],
    ids=["skip", "replay", "rollback"],
)
def test_a_run_saved_from_spikes_uses_the_budget_as_one_without_them(tmp_path, order, response, snapshot_every):
    good, bad = samples(200), torch.full((8, 64), torch.nan, dtype=torch.float64)
    data = torch.cat([good[:16], bad, good[16:56], bad, good[56:]])
    budget, settings = TrainingBudget(96), {"accumulate_grad_batches": 2}
    plain, _, _ = spent(budget, data=good, **settings)
    guard = SpikeGuard(ladder=[response], snapshot_every=snapshot_every, warn={}, watch={}, forgive_after=1)
    again = TrainingBudget(96)
    callbacks = [guard, again] if order == "guard first" else [again, guard]
    guarded, _, trainer = spent(again, callbacks=callbacks, data=data, default_root_dir=tmp_path, **settings)
    assert len(guard.incidents) == 2
    assert torch.equal(plain.weight, guarded.weight)
    assert (again.used, trainer.global_step) == (budget.used, 12) == (96, 12)
    assert trainer.lr_scheduler_configs[0].scheduler.position == 96


# Seconds


class Clock(Callback):
    """A batch takes a second, a validation ten; nothing else takes any time."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module, "_now", lambda: self.now)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now += 1.0

    def on_validation_end(self, trainer, pl_module):
        self.now += 10.0


class Validated(Noisy):
    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return DataLoader(samples(4))


def in_seconds(optimizer, trainer):
    return ProfileLR(optimizer, "Linear", unit="seconds")


def test_seconds_are_counted_with_validation_and_schedules_follow(monkeypatch):
    budget, clock = TrainingBudget(60, unit="seconds"), Clock(monkeypatch)
    _, seen, trainer = spent(budget, callbacks=[clock, budget], model=Validated(in_seconds))
    # 25 batches an epoch, and then a validation
    assert seen.used[:27] == [float(second) for second in range(1, 26)] + [36.0, 37.0]
    assert seen.used[-1] == 60.0
    assert trainer.global_step == 50
    assert [[used] for used in seen.used] == seen.positions
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]


def test_a_resumed_run_goes_on_with_the_seconds_used(tmp_path, monkeypatch):
    clock, budget = Clock(monkeypatch), TrainingBudget(20, unit="seconds")
    spent(budget, callbacks=[clock, budget, Save(tmp_path, [7])], model=Noisy(in_seconds))
    clock.now += 1e6  # nobody was training
    again = TrainingBudget(20, unit="seconds")
    _, seen, trainer = spent(again, callbacks=[clock, again], model=Noisy(in_seconds), ckpt_path=tmp_path / "7.ckpt")
    assert seen.used == [float(second) for second in range(8, 21)]
    assert [[used] for used in seen.used] == seen.positions
    assert trainer.global_step == 20


def test_what_is_saved_after_a_validation_knows_of_it(tmp_path, monkeypatch):
    class AfterValidation(Callback):
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "validated.ckpt")

    clock, budget = Clock(monkeypatch), TrainingBudget(30, unit="seconds")
    spent(budget, callbacks=[clock, budget, AfterValidation()], model=Validated(in_seconds), num_sanity_val_steps=0)
    state = torch.load(tmp_path / "validated.ckpt", weights_only=True)["callbacks"]["TrainingBudget"]
    assert state == {"unit": "seconds", "used": 35.0}


def test_a_rollback_gives_no_seconds_back_and_the_schedule_catches_up(tmp_path, monkeypatch):
    data = torch.cat([samples(24), torch.full((4, 64), torch.nan, dtype=torch.float64), samples(60)])
    clock, budget = Clock(monkeypatch), TrainingBudget(15, unit="seconds")
    guard = SpikeGuard(ladder=[Rollback(times=9, mode="skip")], snapshot_every=3, warn={}, watch={})
    callbacks = [guard, clock, budget]
    _, seen, trainer = spent(budget, callbacks=callbacks, data=data, model=Noisy(in_seconds), default_root_dir=tmp_path)
    assert len(guard.incidents) == 1
    assert seen.used == [float(second) for second in range(1, 16)]
    assert seen.positions[6][0] < 7.0  # rolled back
    assert seen.positions[7:] == [[float(second)] for second in range(8, 16)]
    assert trainer.global_step < 15


# What is refused


class Iterates(Noisy):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


class Returns(Noisy):
    def training_step(self, batch, batch_idx):
        return self.weight.sum()


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_batches_that_it_cannot_see_are_refused():
    with pytest.raises(RuntimeError, match="or count seconds"):
        spent(TrainingBudget(10), model=Iterates())
    with pytest.raises(RuntimeError, match="does not find samples to count in the batch"):
        fit(TrainingBudget(10), loader=DataLoader([1, 2, 3], batch_size=None), model=Returns())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "steps"}, r"`TrainingBudget\(unit=...\)` must be one of \"samples\".*Trainer's: `max_steps`"),
        ({"total": 0}, r"`TrainingBudget\(total=...\)` must be above 0 and finite, got 0"),
        ({"total": -5}, "above 0 and finite, got -5"),
        ({"total": math.nan}, "above 0 and finite, got nan"),
        ({"total": math.inf}, "above 0 and finite, got inf"),
        ({"total": True}, "above 0 and finite, got True"),
        ({"total": "1e6"}, "above 0 and finite, got '1e6'"),
        ({"total": 1.5}, "a whole number of samples, got 1.5"),
        ({"total": 1.5, "unit": "tokens"}, "a whole number of tokens, got 1.5"),
        ({"key": ""}, r"`TrainingBudget\(key=...\)` names a tensor whose samples are counted, got ''"),
        ({"unit": "seconds", "key": "x"}, "must be None for seconds"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingBudget(**arguments)
