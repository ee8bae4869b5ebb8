# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stable.callbacks import SequenceLengthWarmup
from lightning_stable.detectors import NonFinite
from lightning_stable.guard import Diagnose, Halt, Rollback, SkipStep, SpikeGuard
from lightning_stable.testing import InjectFault
from tests.faulty_runs import TextNet, assert_same, make_batches, run

LENGTH = 64
TOKENS = torch.randint(16, (60, LENGTH), generator=torch.Generator().manual_seed(0))


class Language(LightningModule):
    """The mean of embeddings predicts the targets; batches are pairs, as from a `TensorDataset`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16)
        self.shapes, self.val_shapes = [], []

    def training_step(self, batch, batch_idx):
        tokens, targets = batch
        self.shapes.append(tuple(tokens.shape))
        return nn.functional.cross_entropy(self.head(self.embed(tokens)).view(-1, 16), targets.view(-1))

    def validation_step(self, batch, batch_idx):
        self.val_shapes.append(tuple(batch[0].shape))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(callback, max_steps=12, ckpt_path=None, tokens=TOKENS, model=None, logger=False, batch_size=2, **settings):
    model = model or Language()
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    loader = DataLoader(TensorDataset(tokens, tokens.roll(-1, 1)), batch_size=batch_size)
    trainer.fit(model, loader, DataLoader(TensorDataset(TOKENS[:2], TOKENS[:2])), ckpt_path=ckpt_path)
    return model, trainer


def reference(step, start, end, until, multiple, pacing="linear"):
    if step >= until:
        return end
    part = step / until
    raw = start + (end - start) * (part if pacing == "linear" else part**0.5)
    return max(start, int(raw // multiple) * multiple)


# The lengths


@pytest.mark.parametrize(
    ("start", "end", "steps", "multiple_of", "pacing"),
    [
        (8, 64, 10, 8, "linear"),
        (8, 64, 7, 8, "linear"),
        (5, 64, 10, 1, "linear"),
        (5, 50, 10, 8, "linear"),
        (4, 64, 10, 4, "sqrt"),
        (8, 64, 0, 8, "linear"),
        (64, 64, 5, 8, "linear"),
    ],
)
def test_every_step_has_the_length_of_the_closed_form(start, end, steps, multiple_of, pacing):
    callback = SequenceLengthWarmup(start, end, steps, multiple_of=multiple_of, pacing=pacing)
    model, _ = fit(callback)
    expected = [reference(step, start, end, steps, multiple_of, pacing) for step in range(12)]
    assert [length for _, length in model.shapes] == expected
    assert {samples for samples, _ in model.shapes} == {2}


def test_by_default_it_takes_a_third_of_the_run_and_ends_at_what_a_batch_has():
    model, _ = fit(SequenceLengthWarmup())
    assert [length for _, length in model.shapes] == [8, 16, 32, 48] + 8 * [64]  # 0.3 * 12 steps are 4


def test_an_end_beyond_the_batch_cuts_nothing_and_a_start_beyond_it_neither():
    model, _ = fit(SequenceLengthWarmup(8, 1024, steps=12))
    assert [length for _, length in model.shapes][:2] == [8, 64]
    model, _ = fit(SequenceLengthWarmup(500, steps=12))
    assert {length for _, length in model.shapes} == {64}


def test_all_batches_of_an_accumulated_step_are_of_one_length():
    model, _ = fit(SequenceLengthWarmup(8, 64, steps=4), max_steps=5, accumulate_grad_batches=3)
    lengths = [length for _, length in model.shapes]
    assert lengths == [reference(batch // 3, 8, 64, 4, 8) for batch in range(15)]


def test_reshaping_keeps_all_tokens():
    model, _ = fit(SequenceLengthWarmup(8, 64, steps=8, mode="reshape"), max_steps=10)
    assert all(samples * length == 2 * LENGTH for samples, length in model.shapes)
    assert [length for _, length in model.shapes] == [8, 8, 16, 16, 32, 32, 32, 32, 64, 64]


def test_validation_has_all_of_its_sequences():
    model, _ = fit(SequenceLengthWarmup(8, steps=12), val_check_interval=5)
    assert set(model.val_shapes) == {(1, LENGTH)}


def test_a_step_is_that_of_a_batch_that_was_short_from_the_start():
    cut, _ = fit(SequenceLengthWarmup(16, 16, steps=0))
    short, _ = fit(SequenceLengthWarmup(64, steps=0), tokens=TOKENS)
    assert not torch.equal(cut.head.weight, short.head.weight)
    model = Language()
    pairs = TensorDataset(TOKENS[:, :16].clone(), TOKENS.roll(-1, 1)[:, :16].clone())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=12, accelerator="cpu", num_sanity_val_steps=0, enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(pairs, batch_size=2), DataLoader(pairs))
    assert torch.equal(cut.head.weight, model.head.weight)
    assert torch.equal(cut.embed.weight, model.embed.weight)


# Resume and guard


@pytest.mark.parametrize("mode", ["truncate", "reshape"])
@pytest.mark.parametrize("saved_at", [1, 5, 9])
def test_a_run_resumed_in_mid_warmup_equals_an_uninterrupted_one(mode, saved_at, tmp_path):
    straight, _ = fit(SequenceLengthWarmup(8, steps=8, mode=mode))
    before, trainer = fit(SequenceLengthWarmup(8, steps=8, mode=mode), max_steps=saved_at)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    after, _ = fit(
        SequenceLengthWarmup(8, steps=8, mode=mode),
        ckpt_path=tmp_path / "mid.ckpt",
        tokens=TOKENS.roll(-2 * saved_at, 0),
    )
    assert before.shapes + after.shapes == straight.shapes
    assert torch.equal(straight.head.weight, after.head.weight)


def guarded(batches, *more, responses):
    guard = SpikeGuard(watch={"loss": NonFinite()}, ladder=[*responses, Halt()], snapshot_every=4)
    warmup = SequenceLengthWarmup(2, steps=14, multiple_of=1, keys=["tokens"])
    return guard, run(batches, [guard, warmup, *more], model=TextNet)


@pytest.mark.parametrize("bad", [{5}, {0}, {6, 7}, {11}], ids=str)
@pytest.mark.parametrize("response", [lambda: Rollback(mode="replay", times=9), lambda: SkipStep(times=9)])
def test_what_a_guard_replays_is_cut_as_it_was(bad, response):
    """The promise of the guard, while lengths change from step to step."""
    responses = [response()]
    _, spiked = guarded(make_batches(12, bad=bad, kind="text"), responses=responses)
    clean = [batch for index, batch in enumerate(make_batches(12, kind="text")) if index not in bad]
    assert_same(spiked, guarded(clean, responses=[response()])[1])


def test_a_fault_in_the_data_is_found_again_when_the_step_is_run_again():
    guard, outcome = guarded(
        make_batches(12, kind="text"),
        InjectFault("nan_data", step=5, target="scale"),
        responses=[Diagnose(), SkipStep()],
    )
    assert outcome.global_step == 24 - len(guard.incidents)
    assert {incident.cause for incident in guard.incidents} == {"the data or the state"}  # reproduced, that is


def test_the_length_is_logged(tmp_path):
    _, trainer = fit(SequenceLengthWarmup(8, steps=4), max_steps=6, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.logger.save()
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert lines == ["stability/sequence_length,step", "16,1", "48,3", "64,5"]


def test_nothing_is_left_behind_also_when_fit_breaks_off():
    class Breaks(Language):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("on purpose")
            return super().training_step(batch, batch_idx)

    callback = SequenceLengthWarmup(8, steps=8)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(callback, model=Breaks())
    assert callback._undo is None
    _, trainer = fit(callback)
    assert "batch_to_device" not in vars(trainer.strategy)


# Errors


class Images(Language):
    def training_step(self, batch, batch_idx):
        raise AssertionError


def test_a_batch_without_sequences_says_what_to_name():
    images = torch.zeros(4, 3, 8, 8)
    with pytest.raises(
        ValueError,
        match=r"`SequenceLengthWarmup` cannot cut a batch\. .* no sequences .*\[B, L\]\. Name .* with `keys`",
    ):
        fit(SequenceLengthWarmup(8, steps=4), model=Images(), tokens=images)
    with pytest.raises(ValueError, match=r"`keys` must name a place in the batch, got 'tokens'"):
        fit(SequenceLengthWarmup(8, steps=4, keys=["tokens"]))


def test_sequences_that_cannot_be_cut_into_pieces_say_what_to_change():
    with pytest.raises(
        ValueError, match=r"`SequenceLengthWarmup` cannot .* `multiple_of=8` leaves no piece .* of 63.*truncate"
    ):
        fit(SequenceLengthWarmup(8, steps=4, mode="reshape"), tokens=TOKENS[:, :63])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0}, r"`SequenceLengthWarmup\(start=...\)` must be a whole number of at least 1, got 0\."),
        ({"start": 1.5}, r"`SequenceLengthWarmup\(start=...\)` must be a whole number of at least 1, got 1\.5\."),
        ({"start": True}, r"`SequenceLengthWarmup\(start=...\)` must be a whole number of at least 1, got True\."),
        ({"end": 4}, r"`SequenceLengthWarmup\(end=...\)` must be at least `start` \(8\), got 4\."),
        (
            {"multiple_of": 0},
            r"`SequenceLengthWarmup\(multiple_of=...\)` must be a whole number of at least 1, got 0\.",
        ),
        ({"multiple_of": math.nan}, r"`SequenceLengthWarmup\(multiple_of=...\)` must be a whole .* got nan\."),
        ({"mode": "drop"}, r'`SequenceLengthWarmup\(mode=...\)` must be "truncate" or "reshape", got \'drop\'\.'),
        ({"pacing": "exp"}, r'`SequenceLengthWarmup\(pacing=...\)` must be "linear" or "sqrt", got \'exp\'\.'),
        ({"keys": []}, r"`SequenceLengthWarmup\(keys=...\)` must name at least one place in the batch, got \[\]\."),
        ({"fraction": -0.1}, r"`SequenceLengthWarmup\(fraction=...\)` must be in \[0, 1\], got -0\.1\."),
    ],
)
def test_an_argument_out_of_its_bounds_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        SequenceLengthWarmup(**arguments)
