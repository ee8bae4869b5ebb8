# SPDX-License-Identifier: Apache-2.0
import math
from contextlib import ExitStack

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader, IterableDataset

from lightning_stable._lightning.training_batches import change_training_batches
from lightning_stable.callbacks import AdaptiveBatchSize, ResolutionSchedule
from lightning_stable.callbacks.span import Place, Span
from tests.faulty_runs import make_batches


class Ask(Callback):
    """Notes with how many optimizer steps the part is over."""

    def __init__(self, span):
        self.span, self.steps = span, None

    def on_train_start(self, trainer, pl_module):
        self.span.place("Ask", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.steps is None and self.span.place("Ask", trainer).is_over:
            self.steps = trainer.global_step
            trainer.should_stop = True

    def on_train_end(self, trainer, pl_module):
        self.steps = trainer.global_step if self.steps is None else self.steps


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield make_batches(1)[0]["x"].repeat(1, 4)


def asked(span, data=None, **settings):
    ask = Ask(span)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = DataLoader([make_batches(1)[0]["x"][0].repeat(4)] * 20) if data is None else DataLoader(data)
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[ask], limit_val_batches=0, **quiet, **settings)
    trainer.fit(BoringModel(), loader)
    return ask.steps


@pytest.mark.parametrize(
    ("span", "settings", "steps"),
    [
        (Span(7, None, 0.5), {"max_epochs": 3}, 7),
        (Span(0, None, 0.5), {"max_epochs": 3}, 0),
        (Span(None, 2, 0.5), {"max_epochs": 3}, 40),
        (Span(None, 1.5, 0.5), {"max_epochs": 3}, 30),
        (Span(None, 2, 0.5), {"max_epochs": 3, "accumulate_grad_batches": 3}, 14),
        (Span(None, 2, 0.5), {"max_epochs": 3, "limit_train_batches": 5}, 10),
        (Span(None, None, 0.5), {"max_epochs": 3}, 30),
        (Span(None, None, 0.5), {"max_steps": 50}, 25),
        (Span(None, None, 0.25), {"max_epochs": 3, "max_steps": 40}, 10),
        (Span(None, None, 0.5), {"max_epochs": 4, "accumulate_grad_batches": 2}, 20),
        (Span(None, None, 1 / 6), {"max_steps": 10}, 2),
        (Span(None, None, 0.0), {"max_steps": 10}, 0),
        (Span(None, None, 1.0), {"max_steps": 10}, 10),
        (Span(None, None, 0.5), {"max_epochs": 1, "max_steps": 40}, 10),
    ],
)
def test_a_part_of_a_run_in_optimizer_steps(span, settings, steps):
    assert asked(span, **settings) == steps


class Clock(Callback):
    """The places of a part that is given in epochs, at every transfer and at every hook of a batch."""

    def __init__(self, epochs=2):
        self.span, self.undo = Span(None, epochs, 0.5), ExitStack()
        self.seen, self.shares = [], []

    def on_train_start(self, trainer, pl_module):
        change_training_batches(self.undo, trainer, "Clock", lambda batch: self.note(trainer) or batch)

    def note(self, trainer):
        self.seen.append(self.span.place("Clock", trainer).done)
        self.shares.append(self.span.place("Clock", trainer).share)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(trainer)

    def on_train_end(self, trainer, pl_module):
        self.undo.close()


def run_with(callbacks, model=BoringModel, data=None, ckpt_path=None, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, **quiet, **settings}
    trainer = Trainer(callbacks=callbacks, **settings)
    data = [make_batches(1)[0]["x"][0].repeat(4)] * 5 if data is None else data
    trainer.fit(model(), DataLoader(data), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_batches_of_a_step_have_one_place_from_the_transfer_to_the_last_hook(accumulate):
    clock = Clock()
    run_with([clock], accumulate_grad_batches=accumulate, enable_checkpointing=False)
    steps = math.ceil(5 / accumulate)
    assert clock.seen == [
        steps * epoch + batch // accumulate for epoch in (0, 1) for batch in range(5) for _ in range(3)
    ]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("at", [2, 5, 7])
def test_a_resumed_run_is_where_it_was(at, tmp_path):
    straight, resumed = Clock(), Clock()
    run_with([straight, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)])
    run_with([resumed], ckpt_path=tmp_path / f"step={at}.ckpt", enable_checkpointing=False)
    assert resumed.seen == straight.seen[3 * at :]


def test_several_steps_of_one_batch_are_one_batch():
    class Several(BoringModel):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.step(batch))
                optimizer.step()

    clock = Clock()
    trainer = run_with([clock], Several, enable_checkpointing=False)
    assert trainer.global_step == 20
    assert clock.seen[::3] == list(range(10))


@pytest.mark.parametrize("order", [1, -1])
def test_epochs_are_epochs_also_while_the_resolution_changes(order):
    class OfImages(BoringModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.flatten(1)[:, :1].expand(-1, 32), batch_idx)

    class Images(Clock):
        def on_train_start(self, trainer, pl_module):
            pass

    clock = Images(epochs=3)
    resolution = ResolutionSchedule([0.5, 1.0], epochs=[1])
    callbacks = [clock, resolution][::order]
    trainer = run_with(callbacks, OfImages, torch.zeros(8, 1, 64, 64), max_epochs=3, enable_checkpointing=False)
    assert clock.shares[::2] == [*[0] * 4, *[1 / 6] * 4, *(step / 24 for step in range(8, 24))]
    assert trainer.global_step == 2 + 8 + 8


def test_batches_have_a_place_each_while_their_number_in_a_step_grows():
    clock = Clock()
    run_with([clock, AdaptiveBatchSize()], accumulate_grad_batches=2, enable_checkpointing=False)
    assert clock.seen[::3] == list(range(10))


def test_what_nobody_knows_the_length_of_says_what_to_set():
    with pytest.raises(
        ValueError, match=r"`Ask\(epochs=2\)` needs .* Use `Ask\(steps=...\)`, or `Trainer\(limit_train"
    ):
        asked(Span(None, 2, 0.5), Endless(), max_steps=5)
    with pytest.raises(ValueError, match=r"`Ask\(fraction=0\.5\)` needs .*`Trainer\(max_steps=...\)` or `max_epochs`"):
        asked(Span(None, None, 0.5), max_epochs=-1)
    assert asked(Span(3, None, 0.5), Endless(), max_steps=5) == 3
    assert asked(Span(None, None, 0.4), Endless(), max_steps=5) == 2


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Span(3, 2, 0.5), r"`Ask\(steps=...\)` must be None if `epochs` is given \(2\), got 3\."),
        (Span(-1, None, 0.5), r"`Ask\(steps=...\)` must be a whole number of at least 0, got -1\."),
        (Span(1.5, None, 0.5), r"`Ask\(steps=...\)` must be a whole number of at least 0, got 1\.5\."),
        (Span(math.nan, None, 0.5), r"`Ask\(steps=...\)` must be a whole number of at least 0, got nan\."),
        (Span(True, None, 0.5), r"`Ask\(steps=...\)` must be a whole number of at least 0, got True\."),
        (Span(None, -1, 0.5), r"`Ask\(epochs=...\)` must be at least 0 and finite, got -1\."),
        (Span(None, math.inf, 0.5), r"`Ask\(epochs=...\)` must be at least 0 and finite, got inf\."),
        (Span(None, None, 1.1), r"`Ask\(fraction=...\)` must be in \[0, 1\], got 1\.1\."),
        (Span(None, None, math.nan), r"`Ask\(fraction=...\)` must be in \[0, 1\], got nan\."),
        (Span(None, None, None), r"`Ask\(fraction=...\)` must be in \[0, 1\], got None\."),
    ],
)
def test_what_is_no_part_of_a_run_is_refused_by_name(span, message):
    with pytest.raises(ValueError, match=message):
        span.check("Ask")


def test_a_part_of_no_length_is_over():
    assert Place(0, 0).is_over
    assert Place(0, 0).share == 1.0
