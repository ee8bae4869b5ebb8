# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.callbacks import AdaptiveBatchSize
from lightning_stable.schedules import ProfileLR
from tests.callbacks.noisy_runs import (
    EAGER,
    MEAN,
    VARIANCE,
    Noisy,
    Probe,
    counting,
    fit,
    grown,
    linear,
    one_cycle,
    samples,
)

# The test


@pytest.mark.parametrize("accumulated", [2, 8])
def test_what_it_asks_for_is_within_a_tenth_of_theory(accumulated):
    data, settings = samples(9600, seed=3), {"max_accumulation": 1, "smoothing": 0.998, "eta": 0.1}
    callback, probe, _ = grown(16, data=data, accumulate_grad_batches=accumulated, **settings)
    theory = VARIANCE / (0.1**2 * MEAN**2)
    assert probe.logged["stability/batch_size_wanted"][-1] == pytest.approx(theory, rel=0.1)
    assert probe.logged["stability/gradient_noise_scale"][-1] == pytest.approx(VARIANCE / MEAN**2, rel=0.1)
    assert callback.batch_size == 16 * accumulated  # which `max_accumulation` keeps


def test_the_batch_grows_to_what_theory_asks_for_and_never_shrinks():
    settings = {"max_accumulation": 1000, "smoothing": 0.99, "max_growth": 1.3}
    callback, probe, trainer = grown(16, data=samples(16000), accumulate_grad_batches=2, **settings)
    lengths = probe.accumulated[:-1]  # the last one is what is left of the epoch
    assert lengths == sorted(lengths)
    assert callback.batch_size == 16 * lengths[-1] == pytest.approx(VARIANCE / 0.25, rel=0.25)
    assert probe.logged["stability/batch_size"] == sorted(probe.logged["stability/batch_size"])
    assert trainer.accumulate_grad_batches == 2  # as it was found


def test_the_first_measurements_only_watch_and_then_it_doubles_at_most():
    _, probe, _ = grown(eta=0.01, accumulate_grad_batches=2, max_accumulation=1000)
    assert probe.accumulated[:9] == [2, 2, 2, 2, 2, 4, 8, 16, 32]
    _, probe, _ = grown(eta=0.01, accumulate_grad_batches=2, max_accumulation=1000, max_growth=math.inf)
    assert probe.accumulated == [2, 2, 2, 2, 2, 190]  # all that is left of 200 batches


@pytest.mark.parametrize(
    ("bound", "largest"),
    [
        ({"max_batch_size": 50}, 48),
        ({"max_accumulation": 6}, 24),
        ({"max_accumulation": 7}, 24),
        ({"max_batch_size": 1}, 8),
    ],
    ids=str,
)
def test_growth_ends_at_its_bounds_in_whole_multiples_of_the_first_batch(bound, largest):
    callback, probe, _ = grown(eta=0.05, accumulate_grad_batches=2, data=samples(2000), **bound)
    assert callback.batch_size == largest == 4 * max(probe.accumulated)
    assert all(length % 2 == 0 for length in probe.accumulated)


def test_without_noise_it_stays():
    callback, probe, _ = grown(data=torch.ones(200, 64, dtype=torch.float64), accumulate_grad_batches=2)
    assert set(probe.accumulated) == {2}
    assert probe.logged["stability/batch_size_wanted"][-1] == pytest.approx(0.0, abs=1e-20)
    assert callback.batch_size == 8


def test_where_there_is_no_gradient_to_be_told_from_noise_it_waits():
    data = torch.ones(200, 64, dtype=torch.float64)
    data[::2] *= -1.0
    _, probe, _ = grown(data=data, accumulate_grad_batches=2, batch_size=1)
    assert set(probe.accumulated) == {2}
    assert math.isinf(probe.logged["stability/batch_size_wanted"][-1])


@pytest.mark.parametrize("test", ["inner_product", "orthogonality"])
def test_the_other_tests_ask_for_what_their_equations_do(test):
    settings = {"test": test, "theta": 0.1, "nu": 0.5, "accumulate_grad_batches": 4, "max_accumulation": 1}
    _, probe, _ = grown(16, data=samples(9600), smoothing=0.998, **settings)
    along = VARIANCE / 64  # the noise is the same in all directions
    theory = along / 0.01 if test == "inner_product" else max(along / 0.01, (VARIANCE - along) / 0.25)
    assert probe.logged["stability/batch_size_wanted"][-1] == pytest.approx(theory / MEAN**2, rel=0.2)


# Windows


def test_gradients_are_means_whatever_the_windows_are():
    data = samples(400)
    _, probe, _ = grown(data=data, eta=0.1)
    assert len(set(probe.accumulated)) > 3
    position = 0
    for length, gradient in zip(probe.accumulated, probe.gradients, strict=True):
        torch.testing.assert_close(gradient, data[position : position + 4 * length].mean(0), rtol=1e-12, atol=1e-12)
        position += 4 * length
    assert position == len(data)


def test_one_rank_with_one_micro_batch_measures_with_two():
    _, probe, _ = grown(every_n_steps=3, max_accumulation=1, data=samples(80))
    assert probe.accumulated[:8] == [2, 1, 1, 2, 1, 1, 2, 1]


def test_an_epoch_that_is_shorter_than_a_window_is_one():
    _, probe, trainer = grown(data=samples(12), eta=0.01, max_epochs=12, max_accumulation=1000)
    assert probe.accumulated[-1] == 3
    assert trainer.global_step < 36


@pytest.mark.parametrize("size", [10, 11])
def test_a_last_batch_of_another_size_is_not_measured(size):
    callback, _, trainer = grown(data=samples(size), max_epochs=3, accumulate_grad_batches=3)
    assert callback.state_dict()["measurements"] == 0
    assert trainer.global_step == 3


class Buckets:
    """Numbers of samples, in batches of several sizes."""

    def __init__(self, count, sizes=(4, 20, 6, 10)):
        self.count, self.sizes = count, sizes

    def __iter__(self):
        start, number = 0, 0
        while start < self.count:
            size = self.sizes[number % len(self.sizes)]
            yield range(start, min(start + size, self.count))
            start, number = start + size, number + 1

    def __len__(self):
        return sum(1 for _ in self)


@pytest.mark.parametrize("accumulated", [2, 3])
def test_batches_of_several_sizes_ask_for_what_theory_does(accumulated):
    loader = torch.utils.data.DataLoader(samples(9605, seed=3), batch_sampler=Buckets(9605))
    settings = {"max_accumulation": 1, "smoothing": 0.998, "eta": 0.1}
    callback, probe, _ = grown(loader=loader, accumulate_grad_batches=accumulated, **settings)
    assert probe.logged["stability/batch_size_wanted"][-1] == pytest.approx(VARIANCE / (0.1**2 * MEAN**2), rel=0.1)
    assert callback.batch_size == 10 * accumulated


class Stream(torch.utils.data.IterableDataset):
    """Nobody knows how long it is."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


class Holey(Noisy):
    """Every fifth batch has no loss."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 5 == 0 else super().training_step(batch, batch_idx)


def test_the_last_window_of_a_stream_is_not_measured():
    data, settings = samples(92, seed=3), {"accumulate_grad_batches": 3, "max_accumulation": 1}
    cut, _, _ = grown(loader=torch.utils.data.DataLoader(Stream(data), batch_size=4), **settings)  # 2 batches are left
    whole, _, _ = grown(data=data[:84], **settings)
    assert cut.state_dict()["sums"] == whole.state_dict()["sums"]


def test_that_nothing_is_ever_measured_is_said_once():
    loader = torch.utils.data.DataLoader(Stream(samples(8)), batch_size=4)
    with pytest.warns(UserWarning, match="none of the last 10 times when it was due came to anything") as found:
        grown(loader=loader, accumulate_grad_batches=3, max_epochs=24)
    assert len([warning for warning in found if "came to anything" in str(warning.message)]) == 1


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
def test_a_window_with_a_batch_without_a_loss_is_not_measured():
    callback, _, _ = grown(data=samples(84), model=Holey(), accumulate_grad_batches=3, max_accumulation=1)
    assert callback.state_dict()["measurements"] == 2  # of 7


# Learning rate and schedules


@pytest.mark.parametrize(("rule", "power"), [("linear", 1.0), ("sqrt", 0.5)])
def test_the_learning_rate_follows_the_batch_while_a_step_runs(rule, power):
    rates = []

    class Inside(Probe):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[0].register_step_pre_hook(lambda opt, *_: rates.append(opt.param_groups[0]["lr"]))

    probe = Inside()
    fit(AdaptiveBatchSize(**{**EAGER, "eta": 0.1}, scale_lr=rule), probe, data=samples(400))
    grown_by = [1, 1, 1, 1, 1, *probe.accumulated[5:-1]]  # the first five take two to measure
    assert rates[:-1] == pytest.approx([0.01 * factor**power for factor in grown_by])
    assert probe.rates == [0.01] * len(probe.rates)
    assert probe.logged["stability/lr_scale/adaptive_batch_size"][-1] > 1.0


@pytest.mark.parametrize("schedule", [counting, linear])
@pytest.mark.parametrize(("count", "accumulated"), [(400, 1), (404, 2), (403, 3)])
def test_schedules_end_exactly_when_the_data_does(schedule, count, accumulated):
    model = Noisy(schedule)
    _, probe, trainer = grown(
        data=samples(count), model=model, eta=0.1, max_epochs=3, accumulate_grad_batches=accumulated
    )
    assert len(set(probe.accumulated)) > 2
    first_steps = 3 * math.ceil(math.ceil(count / 4) / accumulated)
    assert trainer.global_step < first_steps
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.get_last_lr() == [0.0]
    if schedule is counting:
        assert scheduler.position == first_steps
    else:
        assert scheduler.last_epoch == first_steps


def test_in_between_they_are_where_the_first_batch_size_would_be():
    model, data = Noisy(counting), samples(400)
    _, probe, _ = grown(data=data, model=model, eta=0.1)
    position = 0
    for length, rate in zip(probe.accumulated, probe.rates, strict=True):
        assert rate == pytest.approx(0.01 * (1 - position / 100), rel=1e-12)
        position += length


def test_a_schedule_in_epochs_is_moved_on_by_the_share_of_the_epoch():
    def in_epochs(optimizer, trainer):
        return ProfileLR(optimizer, "Linear", total_steps=2, unit="epochs")

    _, probe, trainer = grown(data=samples(404), model=Noisy(in_epochs), eta=0.1, max_epochs=2)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert len(set(probe.accumulated)) > 2
    assert scheduler.position == pytest.approx(2, rel=1e-12)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-14)


def test_in_a_warmup_the_first_step_runs_at_what_it_uses():
    def warm(optimizer, trainer):
        return ProfileLR(optimizer, "Linear", total_steps=100, warmup_steps=8)

    _, probe, _ = grown(data=samples(400), model=Noisy(warm))
    assert probe.accumulated[0] == 2
    assert probe.rates[0] == pytest.approx(0.01 * 2 / 8)


def test_one_cycle_is_not_stepped_beyond_its_end():
    _, _, trainer = grown(data=samples(400), model=Noisy(one_cycle), eta=0.1)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 100


def test_batches_without_samples_are_not_measured_and_that_is_said_once():
    class Lone(Noisy):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"x": tuple(batch.flatten().tolist())}

        def training_step(self, batch, batch_idx):
            return (torch.tensor(batch["x"], dtype=torch.float64).view(-1, 64) @ self.weight).mean()

    with pytest.warns(
        UserWarning, match="cannot measure, and the batch will not grow: its batches hold no tensor"
    ) as found:
        callback, _, _ = grown(model=Lone(), data=samples(40))
    assert len([warning for warning in found if "cannot measure" in str(warning.message)]) == 1
    assert callback.batch_size is None
