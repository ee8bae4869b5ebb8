# SPDX-License-Identifier: Apache-2.0
import jsonargparse
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable.mixins import ScheduledOptimizerMixin
from lightning_stable.schedules import REXLR


class Model(ScheduledOptimizerMixin, LightningModule):
    def __init__(self, width: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.LayerNorm(width), torch.nn.Linear(width, 1))
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.body(batch).square().mean()


def trainer(**settings):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(model, **settings):
    run = trainer(**settings)
    run.fit(model, DataLoader(torch.ones(8, 2)))
    return run


def test_the_defaults_train_with_adamw_and_rex_over_the_whole_run():
    model = Model(lr=0.1)
    run = fit(model, max_epochs=2)
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert type(run.optimizers[0]) is torch.optim.AdamW
    assert type(scheduler) is REXLR
    assert (scheduler.total_steps, scheduler.last_epoch) == (16, 16)
    expected = [0.1 * (1 - step / 16) / (0.5 + 0.5 * (1 - step / 16)) for step in range(16)]
    assert model.rates == pytest.approx(expected)


def test_the_schedule_counts_optimizer_steps_when_batches_are_accumulated():
    scheduler = fit(Model(), max_epochs=2, accumulate_grad_batches=2).lr_scheduler_configs[0].scheduler
    assert (scheduler.total_steps, scheduler.last_epoch) == (8, 8)


def test_weights_decay_and_biases_and_norm_gains_do_not():
    model = Model(weight_decay=0.1, schedule=None)
    decayed, others = model.configure_optimizers().param_groups
    assert [parameter.ndim for parameter in decayed["params"]] == [2, 2]
    assert [parameter.ndim for parameter in others["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_no_weight_decay_means_none_also_where_the_optimizer_s_own_default_is_another():
    (group,) = Model(schedule=None).configure_optimizers().param_groups
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 6


def test_frozen_parameters_are_left_out_and_an_empty_group_is_too():
    model = Model(weight_decay=0.1, schedule=None)
    for parameter in model.parameters():
        parameter.requires_grad = parameter.ndim == 2
    (group,) = model.configure_optimizers().param_groups
    assert [parameter.ndim for parameter in group["params"]] == [2, 2]


def test_arguments_reach_optimizer_and_schedule():
    model = Model(
        optimizer="torch.optim.SGD",
        lr=0.2,
        optimizer_args={"momentum": 0.9},
        schedule_args={"total_steps": 50, "warmup_steps": 5, "beta": 0.9},
    )
    configured = model.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["optimizer"].param_groups[0]["momentum"] == 0.9
    assert configured["lr_scheduler"]["interval"] == "step"
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert (scheduler.total_steps, scheduler.warmup_steps, scheduler.beta) == (50, 5, 0.9)


def test_classes_do_as_well_as_names():
    model = Model(optimizer=torch.optim.SGD, schedule=torch.optim.lr_scheduler.ConstantLR)
    configured = model.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert type(configured["lr_scheduler"]["scheduler"]) is torch.optim.lr_scheduler.ConstantLR


def test_torch_s_one_cycle_gets_the_length_of_the_run_too():
    arguments = {"max_lr": 0.1, "cycle_momentum": False}
    model = Model(schedule="torch.optim.lr_scheduler.OneCycleLR", schedule_args=arguments)
    scheduler = fit(model, max_epochs=1).lr_scheduler_configs[0].scheduler
    assert (scheduler.total_steps, scheduler.last_epoch) == (8, 8)
    assert arguments == {"max_lr": 0.1, "cycle_momentum": False}


def test_a_trial_run_shorter_than_the_warmup_warns_and_runs():
    with pytest.warns(UserWarning, match="the run ends inside the warmup"):
        run = fit(Model(schedule_args={"warmup_steps": 100}), max_steps=2)
    assert run.global_step == 2


def test_lr_is_read_when_the_run_starts():
    model = Model(lr=0.1, schedule=None)
    model.lr = 0.5
    assert model.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_it_works_from_yaml_and_its_hyper_parameters_survive_a_checkpoint(tmp_path):
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model")
    (tmp_path / "run.yaml").write_text(
        f"""
        class_path: {__name__}.Model
        init_args:
          width: 8
          lr: 0.01
          weight_decay: 0.1
          optimizer: torch.optim.RMSprop
          optimizer_args: {{momentum: 0.9}}
          schedule_args: {{warmup_steps: 3}}
        """
    )
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # the latter until jsonargparse 4.48
    model = instantiate(parser.parse_args([f"--model={tmp_path / 'run.yaml'}"])).model
    run = fit(model, max_epochs=1)
    assert type(run.optimizers[0]) is torch.optim.RMSprop
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Model.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert loaded.hparams == model.hparams
    assert loaded.hparams["schedule_args"] == {"warmup_steps": 3}


def test_arguments_that_nobody_takes_are_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        Model(learning_rate=0.1)


def test_an_endless_run_is_refused():
    with pytest.raises(ValueError, match=r"must know how long the run is, and it is endless\. Set `Trainer\(max_steps"):
        fit(Model(), max_epochs=-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"optimizer": "torch.optim.AdamWW"},
            r"`ScheduledOptimizerMixin\(optimizer=\.\.\.\)`.*got 'torch.optim.AdamWW'",
        ),
        ({"optimizer": "no_such.AdamW"}, "got 'no_such.AdamW', which cannot be found"),
        ({"optimizer": "AdamW"}, "got 'AdamW', which cannot be found"),
        (
            {"optimizer": "torch.nn.Linear"},
            "must be a class derived from Optimizer, got 'torch.nn.Linear'",
        ),
        ({"schedule": "torch.optim.SGD"}, r"`ScheduledOptimizerMixin\(schedule=\.\.\.\)`.*got 'torch.optim.SGD'"),
        ({"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "must be a schedule of the step alone"),
        ({"optimizer_args": {"lr": 0.1}}, r"`ScheduledOptimizerMixin\(optimizer_args=\.\.\.\)` must not hold 'lr'"),
        ({"schedule_args": {"optimizer": 1}}, r"\(schedule_args=\.\.\.\)` must not hold 'optimizer'"),
        ({"optimizer": "torch.optim.LBFGS", "weight_decay": 0.1}, "must be 0 with LBFGS, which has no weight decay"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Model(**arguments)
