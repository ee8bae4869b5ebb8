# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from lightning_stable.testbeds import CharLM, Corruption, PythonTextDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # inside Lightning, with torch 2.9 and later
]
TINY = {"n_layer": 2, "n_head": 2, "d_model": 32, "context": 32}


def quiet_trainer(**kwargs):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **kwargs,
    )


def trained(data, **kwargs):
    torch.manual_seed(0)
    model = CharLM(**TINY | kwargs)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    return model, trainer


def text(**kwargs):
    return PythonTextDataModule(**{"context": 32, "batch_size": 16, "batches_per_epoch": 40, "val_batches": 4} | kwargs)


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_a_few_dozen_steps_make_the_loss_fall(norm_placement):
    _, trainer = trained(text(), norm_placement=norm_placement, lr=3e-3)
    assert trainer.callback_metrics["val_loss"] < 4.0  # nothing learned is ln 256 = 5.5
    assert trainer.callback_metrics.keys() == {"train_loss", "val_loss", "val_bits_per_byte"}


def test_two_trainings_are_bit_identical():
    first, _ = trained(text(batches_per_epoch=5), dropout=0.1)
    second, _ = trained(text(batches_per_epoch=5, num_workers=2), dropout=0.1)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropping_a_batch_equals_a_stream_without_it():
    torch.manual_seed(0)
    expected = CharLM(**TINY)
    optimizer = expected.configure_optimizers()
    data = text(batches_per_epoch=6)
    data.setup()
    for i, batch in enumerate(data.train_dataloader()):
        if i not in (1, 4):
            optimizer.zero_grad()
            loss = F.cross_entropy(expected(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
            loss.backward()
            optimizer.step()
    model, _ = trained(text(batches_per_epoch=6, drop=[1, 4]))
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_nan_batch_makes_the_model_nan():
    model, _ = trained(text(batches_per_epoch=3, corrupt=[Corruption("nan_embedding", batches=[1])]))
    assert all(parameter.isnan().all() for parameter in model.gpt.blocks[0].attn.parameters())


def test_validation_is_the_mean_cross_entropy_in_nats_and_bits():
    data = text(val_batches=3)
    model, trainer = trained(data)
    model.eval()
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(batch["tokens"]).double().flatten(0, 1), batch["targets"].flatten())
            for batch in data.val_dataloader()
        ]
    expected = torch.stack(losses).mean().item()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert trainer.callback_metrics["val_bits_per_byte"].item() == pytest.approx(expected / math.log(2), rel=1e-5)


def test_a_batch_needs_no_embedding_scale():
    model = CharLM(**TINY)
    batch = {"tokens": torch.zeros(2, 4).long(), "targets": torch.zeros(2, 4).long()}
    assert torch.equal(model._loss(batch), model._loss(batch | {"embedding_scale": torch.ones(2)}))


def test_the_optimizer_takes_the_arguments_and_decays_matrices_only():
    optimizer = CharLM(**TINY, lr=0.5, weight_decay=0.2, betas=(0.8, 0.9)).configure_optimizers()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert all(group["lr"] == 0.5 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)
    assert {p.ndim for p in optimizer.param_groups[0]["params"]} == {2}
    assert {p.ndim for p in optimizer.param_groups[1]["params"]} == {1}


def test_the_arguments_are_in_the_checkpoint_which_loads_safely(tmp_path):
    model, trainer = trained(text(batches_per_epoch=1, val_batches=1), norm_placement="post")
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = CharLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.hparams == model.hparams
    assert loaded.hparams["norm_placement"] == "post"


def test_it_is_made_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    init_args = TINY | {"norm_placement": "post", "betas": [0.9, 0.99]}
    config = {"class_path": "lightning_stable.testbeds.CharLM", "init_args": init_args}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter until 4.48
    model = instantiate(parser.parse_object({"model": config})).model
    assert isinstance(model, CharLM)
    assert model.betas == (0.9, 0.99)
    assert model.gpt.blocks[0].norm_placement == "post"


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`GPT\(n_head=\.\.\.\)` must be at least 1, got 0\."):
        CharLM(n_head=0)
