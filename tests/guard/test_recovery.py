# SPDX-License-Identifier: Apache-2.0
"""Going back: beside which callbacks, over which validations and checkpoints, and how often."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Sampler

from lightning_stable._lightning import progress
from lightning_stable.guard import Rollback, ScaleLR, SkipStep
from lightning_stable.testing import InjectFault
from tests.faulty_runs import Batches, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, without

RESPONSES = {
    "skip": lambda: SkipStep(times=99),
    "replay": lambda: Rollback(mode="replay", times=99),
}


@pytest.fixture(params=RESPONSES)
def response(request):
    return RESPONSES[request.param]()


@pytest.mark.parametrize("again", [7, 8, 9, 10])
def test_a_replay_at_a_shorter_end_of_an_epoch_may_fail_again(again):
    """The last step is one batch of two; the three before it are replayed as steps 8, 9, 10, and one of them fails."""
    faults = [InjectFault("nan_loss", step=step) for step in (7, again)]
    settings = {"accumulate_grad_batches": 2, "epochs": 1, "val_check_interval": 15}
    guarded = guard(Rollback(mode="replay", times=99), snapshot_every=4)
    actual = run(make_batches(15), [guarded, *faults[: 1 + (again > 7)]], **settings)
    left_out = {14} | ({2 * again - 8, 2 * again - 7} if again > 7 else set())
    expected = run(without(make_batches(15), left_out), **{**settings, "val_check_interval": 1.0})
    assert_same(actual, expected)


class DrawnWhenFetched(Batches):
    """Draws from the global generator whenever a batch is fetched."""

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        return {**batch, "x": batch["x"] + 0.1 * torch.randn(4, 8)}


@pytest.mark.parametrize("bad", [{13}, {12, 13}])
@pytest.mark.parametrize("rung", [SkipStep(times=9), Rollback(mode="replay", times=9)])
def test_data_and_validation_that_draw_random_numbers_do_so_as_if_the_step_had_not_been(rung, bad):
    """Validation is after batch 11, and its loader draws a seed; the replay begins at batch 10."""
    settings = {"dataset": DrawnWhenFetched, "val_check_interval": 6, "epochs": 1}
    actual = run(make_batches(15, bad), [guard(rung, snapshot_every=10)], **settings)
    assert_same(actual, run(without(make_batches(15), bad), **settings))


def averaged_weights(average):
    return lambda trainer: average.extend(p.clone() for p in trainer.callbacks[-1]._average_model.parameters())


@pytest.mark.parametrize("bad", [{0}, {5}, {11}, {4, 5, 6}])
def test_an_average_of_the_weights_never_saw_the_step(response, bad):
    actual, expected = [], []
    run(
        make_batches(12, bad),
        [guard(response, snapshot_every=4), EMAWeightAveraging(decay=0.9)],
        after=averaged_weights(actual),
    )
    run(without(make_batches(12), bad), [EMAWeightAveraging(decay=0.9)], after=averaged_weights(expected))
    assert_same(actual, expected)


class Counter(Callback):
    """A callback with state that moves in every batch, and follows the guard."""

    def __init__(self):
        self.batches = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]


@pytest.mark.parametrize("bad", [{0}, {5, 6}, {11}])
def test_the_state_of_other_callbacks_goes_back_too(response, bad):
    counter = Counter()
    run(make_batches(12, bad), [guard(response, snapshot_every=4), counter])
    assert counter.batches == 2 * (12 - len(bad))


class RecordSteps(Callback):
    def __init__(self):
        self.logging_steps, self.validated_at = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logging_steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer, pl_module):
        self.validated_at.append(trainer.fit_loop.epoch_loop.batch_idx)


@pytest.mark.parametrize("bad", [{5}, {6}, {7}, {8}, {9}, {10}, {11}])
def test_an_epoch_is_validated_as_often_as_without_a_spike_and_the_x_axis_never_goes_back(response, bad):
    record = RecordSteps()
    run(make_batches(12, bad), [guard(response, snapshot_every=4), record], val_check_interval=3, epochs=1)
    assert record.validated_at == [2, 5, 8, 11]
    assert record.logging_steps == sorted(record.logging_steps)


@pytest.mark.parametrize("bad", [{5}, {7}, {11}])
def test_a_replayed_step_is_not_saved_again(tmp_path, bad):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(
        make_batches(12, bad),
        [guard(Rollback(mode="replay", times=99), snapshot_every=4), checkpoint],
        enable_checkpointing=True,
        epochs=1,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"step={step}.ckpt" for step in range(1, 12))


class Saves(ModelCheckpoint):
    """Notes after how many batches of the epoch it saves, and at which step."""

    def __init__(self, folder, every):
        super().__init__(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        self.saved = []

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.saved.append((trainer.global_step, progress.batches_into_epoch(trainer)))


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("bad", [{4}, {6}, {6, 8}, {8}, {10, 13}])
def test_nothing_is_saved_in_the_middle_of_a_window(tmp_path, response, bad, every):
    """Whose gradients no checkpoint holds."""
    saves = Saves(tmp_path, every)
    arguments = {"enable_checkpointing": True, "accumulate_grad_batches": 2, "epochs": 1}
    run(make_batches(20, bad), [guard(response, snapshot_every=4), saves], **arguments)
    assert saves.saved
    assert [into % 2 for _, into in saves.saved] == [0] * len(saves.saved)


@pytest.mark.parametrize("bad", [{5}, {11}])
def test_no_checkpoint_ever_holds_a_nan(tmp_path, response, bad):
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    run(make_batches(12, bad), [checkpoint, guard(response, snapshot_every=4)], enable_checkpointing=True)
    files = list(tmp_path.iterdir())
    assert files
    for path in files:
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())


def test_max_steps_counts_steps_that_happened(response):
    actual = run(make_batches(12, {3, 4}), [guard(response, snapshot_every=4)], max_steps=9, epochs=-1)
    expected = run(without(make_batches(12), {3, 4}), max_steps=9, epochs=-1)
    assert actual.global_step == 9
    assert_same(actual.weights, expected.weights)


class DrawnOrder(Sampler):
    """An order drawn from the global generator, as `shuffle=True` does, from which some batches are missing."""

    def __init__(self, left_out):
        self.left_out = left_out

    def __len__(self):
        return 12 - len(self.left_out)

    def __iter__(self):
        generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        return iter([i for i in torch.randperm(12, generator=generator).tolist() if i not in self.left_out])


@pytest.mark.parametrize("bad", [{0, 1}, {4, 7, 9}])
def test_an_order_drawn_from_the_global_generator_stays_the_same(monkeypatch, response, bad):
    def shuffled(left_out):
        def loader(dataset, **arguments):
            if len(dataset) == 3:
                return DataLoader(dataset, batch_size=None)
            return DataLoader(dataset, batch_size=None, sampler=DrawnOrder(left_out))

        return loader

    monkeypatch.setattr("tests.faulty_runs.DataLoader", shuffled(set()))
    actual = run(make_batches(12, bad), [guard(response, snapshot_every=4)], epochs=3)
    monkeypatch.setattr("tests.faulty_runs.DataLoader", shuffled(bad))
    assert_same(actual, run(make_batches(12), epochs=3))


class Noisy(Batches):
    """Augments in the main process from the global generator."""

    def __getitem__(self, index):
        batch = super().__getitem__(index)
        return {**batch, "x": batch["x"] + torch.randn(()) * 0.1}


@pytest.mark.parametrize("bad", [{5}, {4, 5, 6}, {11}])
def test_random_numbers_drawn_while_fetching_a_skipped_batch_are_given_back(monkeypatch, bad):
    monkeypatch.setattr("tests.faulty_runs.Batches", Noisy)
    actual = run(make_batches(12, bad), [guard(SkipStep(times=99))])
    assert_same(actual, run(without(make_batches(12), bad)))


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter([{key: value.clone() for key, value in batch.items()} for batch in self.batches])


@pytest.mark.parametrize("bad", [{0}, {5}, {11}, {9, 10, 11}])
def test_a_stream_without_a_length_works_too(monkeypatch, response, bad):
    monkeypatch.setattr("tests.faulty_runs.Batches", Stream)
    actual = run(make_batches(12, bad), [guard(response, snapshot_every=4)])
    assert_same(actual, run(without(make_batches(12), bad)))


class ChangesItsBatch(Net):
    def training_step(self, batch, batch_idx):
        batch["x"].mul_(0.5)
        return super().training_step(batch, batch_idx)


def test_a_replay_gets_the_batch_as_the_loader_gave_it():
    guarded = guard(Rollback(mode="replay", times=99), snapshot_every=6)
    actual = run(make_batches(12, {5}), [guarded], model=ChangesItsBatch)
    assert_same(actual, run(without(make_batches(12), {5}), model=ChangesItsBatch))


class Compiled(Net):
    def __init__(self):
        super().__init__()
        self.layers = torch.compile(self.layers, backend="aot_eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_goes_back_as_any_other(response):
    actual = run(make_batches(12, {5}), [guard(response, snapshot_every=4)], model=Compiled, epochs=1)
    assert_same(actual, run(without(make_batches(12), {5}), model=Compiled, epochs=1))


def test_counting_a_skipped_step_moves_schedule_and_counter_and_nothing_else():
    counted = run(make_batches(6, {5}), [guard(SkipStep(times=9, count_skipped=True))], epochs=1)
    skipped = run(make_batches(6, {5}), [guard(SkipStep(times=9))], epochs=1)
    assert counted.global_step == 6
    assert skipped.global_step == 5
    assert counted.schedules[0]["last_epoch"] == 6
    assert skipped.schedules[0]["last_epoch"] == 5
    assert_same(counted.buffers, skipped.buffers)
    assert_same(counted.weights, skipped.weights)
    assert_same(counted.optimizers[0]["state"], skipped.optimizers[0]["state"])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=100, cycle_momentum=False
        ),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20),
    ],
)
def test_a_scaled_learning_rate_is_forgotten_by_no_schedule(schedule):
    """With plain SGD and a constant gradient an update is the learning rate itself."""

    class Straight(Net):
        def __init__(self):
            super().__init__(epoch_schedule=False)
            self.layers = nn.Linear(8, 1, bias=False)
            self.positions = []

        def training_step(self, batch, batch_idx):
            self.positions.append(self.layers.weight.detach().clone())
            return self.layers.weight.sum() * batch["y"].flatten()[0].div(batch["y"].flatten()[0])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.lrs = []
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

        def on_train_batch_start(self, batch, batch_idx):
            self.lrs.append(self.optimizers().param_groups[0]["lr"])

    batches = make_batches(10)
    batches[4]["y"] *= float("nan")
    holder = []
    run(batches, [guard(ScaleLR(factor=0.5, times=9))], model=lambda: holder.append(Straight()) or holder[0], epochs=1)
    module = holder[0]
    positions = [*module.positions, module.layers.weight.detach()]
    for index, lr in enumerate(module.lrs):
        expected = 0.0 if index == 4 else lr * (1.0 if index < 4 else 0.5)
        moved = (positions[index] - positions[index + 1]).flatten()
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-4, atol=1e-7)
    assert module.lrs[5] == module.lrs[4]  # the schedule itself stood still for the skipped step


def test_resetting_momentum_zeroes_the_moments_in_place():
    from lightning_stable.guard import ResetMomentum

    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                states = trainer.optimizers[0].state.values()
                seen.extend((state["exp_avg"].abs().sum().item(), state["exp_avg_sq"].sum().item()) for state in states)

    run(make_batches(12, {5}), [guard(ResetMomentum(times=9)), Look()], epochs=1)
    assert seen
    assert all(first == 0.0 and second > 0.0 for first, second in seen)


def test_tensorboard_gets_the_incident_on_its_own_axis(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    run(make_batches(12, {5}), [guard(SkipStep(times=9))], logger=logger, epochs=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert "stability/incident/text_summary" in tags["tensors"]
    for tag in ("loss", "grad_norm", "lr", "lr_scale", "incidents", "global_step"):
        assert f"stability/{tag}" in tags["scalars"]
    steps = [event.step for event in events.Scalars("stability/grad_norm")]
    assert steps == list(range(12))
    assert [event.value for event in events.Scalars("stability/global_step")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11]
