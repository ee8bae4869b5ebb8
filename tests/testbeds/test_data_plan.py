# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable.testbeds import Corruption
from lightning_stable.testbeds.data_plan import DataPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # inside Lightning, with torch 2.9 and later
    pytest.mark.filterwarnings("ignore:.*`weights_only` was not set"),
]


class Numbers:
    """Sample i is the number i."""

    def __len__(self):
        return 24

    def batch(self, samples):
        numbers = torch.tensor(samples, dtype=torch.float32)
        return {"pixels": numbers, "targets": numbers.long()}


class Recorder(LightningModule):
    """Writes down which samples it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, tuple(batch["targets"].tolist())))
        return self.weight * batch["pixels"].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveAt(Callback):
    """Saves when the run has made so many steps, after the batch or after the epoch."""

    def __init__(self, path, step, after_epoch):
        self.path, self.step, self.after_epoch = path, step, after_epoch

    def on_train_batch_end(self, trainer, *_):
        if not self.after_epoch and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, *_):
        if self.after_epoch and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def quiet_trainer(**kwargs):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )


def trained(plan, callbacks=(), ckpt_path=None, **kwargs):
    model = Recorder()
    trainer = quiet_trainer(max_epochs=3, callbacks=list(callbacks), **kwargs)
    model.train_dataloader = lambda: plan.training(Numbers(), trainer)
    trainer.fit(model, ckpt_path=ckpt_path)
    return model.seen


def batches(loader, n_epochs=1):
    return [batch for epoch in range(n_epochs) for batch in _epoch(loader, epoch)]


def _epoch(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, equal_nan=True)


def test_named_batches_are_corrupted_whole_and_no_others():
    clean = batches(DataPlan("Plan", batch_size=4).training(Numbers()), n_epochs=3)
    corruption = Corruption("nan_embedding", batches=[1, 7])
    dirty = batches(DataPlan("Plan", batch_size=4, corrupt=[corruption]).training(Numbers()), n_epochs=3)
    assert [i for i, batch in enumerate(dirty) if batch["pixels"].isnan().all()] == [1, 7]
    assert_same_batches(
        [b for i, b in enumerate(clean) if i not in (1, 7)], [b for i, b in enumerate(dirty) if i not in (1, 7)]
    )


def test_later_corruptions_come_on_top():
    corrupt = [Corruption("constant", batches=[0]), Corruption("nan_embedding", batches=[0, 1])]
    first, second, _, *_ = batches(DataPlan("Plan", batch_size=4, corrupt=corrupt).training(Numbers()))
    assert first["pixels"].isnan().all()
    assert second["pixels"].isnan().all()


def test_dropping_the_bad_batches_gives_the_good_ones():
    corrupt = [Corruption("huge_scale", batches=[1, 4])]
    dirty = batches(DataPlan("Plan", batch_size=4, corrupt=corrupt).training(Numbers()))
    dropped = batches(DataPlan("Plan", batch_size=4, drop=[1, 4]).training(Numbers()))
    assert_same_batches([batch for i, batch in enumerate(dirty) if i not in (1, 4)], dropped)


def test_batches_are_the_same_for_any_number_of_workers():
    corrupt = [Corruption("random_bytes", fraction=0.5, seed=3)]
    alone, shared = (
        batches(DataPlan("Plan", 4, num_workers=n, corrupt=corrupt, drop=[2, 8]).training(Numbers()), n_epochs=2)
        for n in (0, 2)
    )
    assert_same_batches(alone, shared)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_random_numbers_are_left_alone(num_workers):
    plan = DataPlan("Plan", batch_size=4, num_workers=num_workers)
    before = torch.get_rng_state()
    batches(plan.training(Numbers()), n_epochs=2)
    list(plan.validation(Numbers()))
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_is_clean_the_same_every_time_and_spread_over_the_source():
    plan = DataPlan("Plan", batch_size=4, corrupt=[Corruption("nan_embedding", fraction=1.0)], drop=[0])
    loader = plan.validation(Numbers(), max_batches=2)
    assert [batch["targets"].tolist() for batch in loader] == [[0, 3, 6, 9], [12, 15, 18, 21]]
    assert_same_batches(list(loader), list(loader))
    assert sum(len(batch["targets"]) for batch in plan.validation(Numbers())) == 24


def test_lightning_keeps_the_sampler_and_gives_each_epoch_its_order():
    plan = DataPlan("Plan", batch_size=4)
    expected = [tuple(batch["targets"].tolist()) for batch in batches(plan.training(Numbers()), n_epochs=3)]
    assert [samples for *_, samples in trained(plan)] == expected


def test_dropping_makes_epochs_shorter_in_lightning_too():
    seen = trained(DataPlan("Plan", batch_size=4, drop=[7, 8]), reload_dataloaders_every_n_epochs=1)
    whole = trained(DataPlan("Plan", batch_size=4))
    assert [len([1 for epoch, *_ in seen if epoch == e]) for e in range(3)] == [6, 4, 6]
    assert [samples for *_, samples in seen] == [samples for i, (*_, samples) in enumerate(whole) if i not in (7, 8)]


def test_epochs_of_different_length_ask_for_reloading():
    with pytest.raises(RuntimeError, match=r"Use `Trainer\(reload_dataloaders_every_n_epochs=1\)`"):
        trained(DataPlan("Plan", batch_size=4, drop=[7]))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "after_epoch"),
    [(3, False), (8, False), (6, False), (6, True), (12, True)],
    ids=["middle", "middle of a later epoch", "last batch", "end of epoch", "end of a later epoch"],
)
def test_a_resumed_run_sees_the_batches_that_were_left(tmp_path, num_workers, step, after_epoch):
    plan = DataPlan("Plan", batch_size=4, num_workers=num_workers)
    path = tmp_path / "saved.ckpt"
    whole = trained(plan, [SaveAt(path, step, after_epoch)])
    assert trained(plan, ckpt_path=path) == whole[step:]


def test_a_resumed_run_with_dropped_batches_sees_the_batches_that_were_left(tmp_path):
    plan = DataPlan("Plan", batch_size=4, drop=[1, 2, 9])
    path = tmp_path / "saved.ckpt"
    whole = trained(plan, [SaveAt(path, 6, after_epoch=False)], reload_dataloaders_every_n_epochs=1)
    assert trained(plan, ckpt_path=path, reload_dataloaders_every_n_epochs=1) == whole[6:]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"`Data\(batch_size=\.\.\.\)` must be at least 1, got 0\."),
        ({"batches_per_epoch": 0}, r"`Data\(batches_per_epoch=\.\.\.\)` must be at least 1, got 0\."),
        ({"num_workers": -1}, r"`Data\(num_workers=\.\.\.\)` must be at least 0, got -1\."),
        ({"drop": [3, -2]}, r"`Data\(drop=\.\.\.\)` must be at least 0, got -2\."),
    ],
)
def test_bad_numbers_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DataPlan("Data", **{"batch_size": 1} | kwargs)


def test_what_is_no_corruption_is_refused():
    with pytest.raises(
        TypeError, match=r"`Data\(corrupt=\.\.\.\)` must be a list of `Corruption`, got \{'kind'.* Write `"
    ):
        DataPlan("Data", batch_size=1, corrupt=[{"kind": "constant"}])
