# SPDX-License-Identifier: Apache-2.0
"""Windows of any length, where Lightning cuts them by the number of the batch."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable._lightning import progress
from lightning_stable._lightning.accumulation import (
    AccumulationWindows,
    counts_windows,
    length_without_growth,
    make_loader_again,
)


@pytest.mark.parametrize(
    "path",
    [
        "fit_loop.epoch_loop._accumulated_batches_reached",
        "fit_loop.epoch_loop.batch_progress.current.ready",
        "fit_loop.epoch_loop.automatic_optimization._make_zero_grad_fn",
        "fit_loop.epoch_loop.automatic_optimization._skip_backward",
        "fit_loop.epoch_loop.automatic_optimization._on_before_zero_grad",
        "fit_loop.epoch_loop.automatic_optimization._optimizer_zero_grad",
        "fit_loop._combined_loader",
        "accumulate_grad_batches",
    ],
)
def test_lightning_still_has_it(path):
    owner = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for name in path.split("."):
        owner = getattr(owner, name)


class Weight(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch))
        return (self.weight * batch).mean()

    def train_dataloader(self):
        return DataLoader(torch.arange(8.0), batch_size=self.batch_size)

    batch_size = 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Windows(Callback):
    """Asks for a new length at every window, and notes the gradients that come of it."""

    def __init__(self, lengths):
        self.lengths, self.gradients, self.steps = list(lengths), [], []

    def on_train_start(self, trainer, pl_module):
        self.windows = AccumulationWindows(trainer)
        assert counts_windows(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.windows.begin_batch(batch_idx, self.lengths[0])
        if self.windows.begins:
            self.lengths.append(self.lengths.pop(0))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(pl_module.weight.grad.item())
        assert progress.batches_beyond_a_window(trainer, 1) == 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(trainer.global_step)

    def on_train_end(self, trainer, pl_module):
        self.windows.detach()


def fit(callback, loader=None, model=None, **settings):
    settings = {"max_epochs": 1, **settings}
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(accelerator="cpu", callbacks=[callback], **quiet, **settings)
    trainer.fit(model or Weight(), loader)
    return trainer


def test_windows_of_changing_lengths_have_mean_gradients_also_the_last_of_an_epoch():
    probe = Windows([1, 3, 2])
    trainer = fit(probe, DataLoader(torch.arange(8.0)), max_epochs=2)
    # 0 | 1 2 3 | 4 5 | 6 | 7: three were wanted, one is left; | then all of it again
    first = [0.0, 2.0, 4.5, 6.0, 7.0]
    assert probe.gradients == [*first, 0.5, 2.0, 4.0, 6.5]  # lengths go on: 2, 1, 3, 2
    assert probe.steps == [1, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7, 7, 7, 8, 8, 9]
    assert not counts_windows(trainer)
    assert "_make_zero_grad_fn" not in vars(trainer.fit_loop.epoch_loop.automatic_optimization)
    assert trainer.accumulate_grad_batches == 1


def test_where_nobody_knows_how_long_an_epoch_is_its_last_window_is_cut_short():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.arange(4.0)

    probe = Windows([3])
    fit(probe, DataLoader(Stream()))
    assert probe.gradients == [1.0, 1.0]  # 0 1 2 | 3, divided by three as Lightning does


def test_without_a_change_it_is_what_lightning_does():
    seen = []

    class Plain(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(pl_module.weight.grad.item())

    fit(Plain(), DataLoader(torch.arange(8.0)), accumulate_grad_batches=2)
    probe = Windows([2])
    fit(probe, DataLoader(torch.arange(8.0)), accumulate_grad_batches=2)
    assert probe.gradients == seen == [0.5, 2.5, 4.5, 6.5]


def test_the_length_that_the_trainer_was_told_is_known_whatever_windows_there_are():
    seen = []

    class Look(Windows):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            seen.append((trainer.accumulate_grad_batches, length_without_growth(trainer)))

    trainer = fit(Look([1, 3]), DataLoader(torch.arange(4.0)), accumulate_grad_batches=2)
    assert seen == [(1, 2), (3, 2), (3, 2), (3, 2)]
    assert length_without_growth(trainer) == 2


def test_a_loader_is_made_again_before_the_next_epoch():
    class Grow(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.batch_size = 4
            make_loader_again(trainer)

    model = Weight()
    fit(Grow(), model=model, max_epochs=2)
    assert model.sizes == [1] * 8 + [4, 4]
