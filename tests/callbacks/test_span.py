# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader, IterableDataset

from lightning_stable.callbacks.span import Span
from tests.faulty_runs import make_batches


class Ask(Callback):
    def __init__(self, span):
        self.span, self.steps = span, None

    def on_train_start(self, trainer, pl_module):
        self.steps = self.span.in_steps("Ask", trainer)
        trainer.should_stop = True


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
    ],
)
def test_a_part_of_a_run_in_optimizer_steps(span, settings, steps):
    assert asked(span, **settings) == steps


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
