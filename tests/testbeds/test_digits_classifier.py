# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from lightning_stable.testbeds import Corruption, DigitsClassifier, DigitsDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # inside Lightning, with torch 2.9 and later
]


def trained(data, max_epochs=1, **kwargs):
    torch.manual_seed(0)
    model = DigitsClassifier(**kwargs)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        max_epochs=max_epochs,
    )
    trainer.fit(model, datamodule=data)
    return model, trainer


@pytest.mark.parametrize("architecture", ["mlp", "conv", "vit"])
def test_a_few_dozen_steps_teach_the_digits(architecture):
    _, trainer = trained(DigitsDataModule(), max_epochs=2, architecture=architecture, width=32, lr=3e-3)
    assert trainer.callback_metrics["val_accuracy"] > 0.6  # chance is 0.1
    assert trainer.callback_metrics["val_loss"] < 1.5  # nothing learned is ln 10 = 2.3
    assert trainer.callback_metrics.keys() == {"train_loss", "val_loss", "val_accuracy"}


def test_validation_is_the_mean_over_all_digits():
    data = DigitsDataModule()
    model, trainer = trained(data)
    model.eval()
    with torch.no_grad():
        logits = model(data.val_images.pixels).double()
    targets = data.val_images.targets
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(
        F.cross_entropy(logits, targets).item(), rel=1e-5
    )
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    assert trainer.callback_metrics["val_accuracy"].item() == pytest.approx(accuracy, rel=1e-5)


def test_two_trainings_are_bit_identical():
    first, _ = trained(DigitsDataModule(batches_per_epoch=5), architecture="conv", width=8)
    second, _ = trained(DigitsDataModule(batches_per_epoch=5, num_workers=2), architecture="conv", width=8)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_a_nan_batch_spoils_the_running_statistics():
    data = DigitsDataModule(batches_per_epoch=2, corrupt=[Corruption("nan_embedding", batches=[0])])
    model, _ = trained(data, width=8)
    assert any(buffer.isnan().any() for buffer in model.buffers())


def test_the_optimizer_decays_weights_only():
    optimizer = DigitsClassifier(lr=0.5, weight_decay=0.2).configure_optimizers()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


def test_it_is_made_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    config = {
        "class_path": "lightning_stable.testbeds.DigitsClassifier",
        "init_args": {"architecture": "vit", "norm": "none"},
    }
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter until 4.48
    model = instantiate(parser.parse_object({"model": config})).model
    assert isinstance(model, DigitsClassifier)
    assert model.hparams["architecture"] == "vit"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"architecture": "cnn"},
            r"`DigitsClassifier\(architecture=\.\.\.\)` must be one of 'mlp', 'conv', 'vit', got 'cnn'\.",
        ),
        ({"norm": "layer"}, r"`DigitsClassifier\(norm=\.\.\.\)` must be one of 'batch', 'none', got 'layer'\."),
        ({"width": 0}, r"`DigitsClassifier\(width=\.\.\.\)` must be at least 1, got 0\."),
        ({"dropout": 1.0}, r"`DigitsClassifier\(dropout=\.\.\.\)` must be in \[0, 1\), got 1\.0\."),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DigitsClassifier(**kwargs)
