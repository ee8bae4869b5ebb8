# SPDX-License-Identifier: Apache-2.0
import math

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_stable.mixins import ScheduledOptimizerMixin
from lightning_stable.schedules import ProfileLR


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
    assert type(scheduler) is ProfileLR
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
        profile={"class_path": "REX", "init_args": {"beta": 0.9}},
        warmup_steps=5,
        schedule_args={"total_steps": 50, "min_ratio": 0.1},
    )
    configured = model.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["optimizer"].param_groups[0]["momentum"] == 0.9
    assert configured["lr_scheduler"]["interval"] == "step"
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert scheduler.total_steps == 50
    assert (scheduler.curve.warmup_steps, scheduler.curve.min_ratio, repr(scheduler.curve.profile)) == (
        5,
        0.1,
        "REX(beta=0.9)",
    )


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
    said = r"`ProfileLR\(total_steps=None\)` takes the length of the run, which has no end here.*`Trainer\(max_steps="
    with pytest.raises(ValueError, match=said):
        fit(Model(), max_epochs=-1)
    with pytest.raises(ValueError, match=r"`OneCycleLR\(total_steps=None\)` takes the length of the run"):
        fit(Model(schedule="torch.optim.lr_scheduler.OneCycleLR", schedule_args={"max_lr": 0.1}), max_epochs=-1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(5, 2))


def test_a_stream_without_length_needs_steps_and_not_epochs():
    with pytest.raises(ValueError, match="with a training loader that has a length"):
        trainer(max_epochs=2).fit(Model(), DataLoader(Stream()))
    run = trainer(max_steps=4)
    run.fit(Model(), DataLoader(Stream()))
    assert run.lr_scheduler_configs[0].scheduler.total_steps == 4


def test_what_needs_no_length_may_run_without_end():
    class Stops(Model):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = self.trainer.global_step >= 10

    for profile in ("WSD", "InverseSqrt"):
        run = fit(Stops(profile=profile, warmup_steps=2), max_epochs=-1)
        assert run.lr_scheduler_configs[0].scheduler.total_steps is None
        assert run.global_step == 10


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 10}])
def test_a_budget_in_epochs_moves_on_in_every_step(limit):
    model = Model(lr=1.0, profile="Linear", schedule_args={"unit": "epochs"}, warmup_steps=1)
    scheduler = fit(model, **limit).lr_scheduler_configs[0].scheduler
    steps = min(24, limit.get("max_steps", 24))
    assert scheduler.total_steps == scheduler.position == pytest.approx(steps / 8)
    expected = [(step + 1) / 8 if step < 8 else 1 - (step - 8) / (steps - 8) for step in range(steps)]
    assert model.rates == pytest.approx(expected)


def test_an_interrupted_run_goes_on_along_the_same_curve(tmp_path):
    straight = Model(lr=0.1, profile="Cosine", warmup_steps=3)
    fit(straight, max_epochs=3)
    first, second = (Model(lr=0.1, profile="Cosine", warmup_steps=3) for _ in range(2))
    run = fit(first, max_epochs=3, callbacks=[StopAfter(1)])
    run.save_checkpoint(tmp_path / "one.ckpt")
    trainer(max_epochs=3).fit(second, DataLoader(torch.ones(8, 2)), ckpt_path=tmp_path / "one.ckpt")
    assert first.rates + second.rates == straight.rates


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class Adversaries(ScheduledOptimizerMixin, LightningModule):
    """Two submodules with an optimizer each, stepped by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.generator = torch.nn.Linear(2, 2)
        self.critic = torch.nn.Linear(2, 1)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in self.optimizers()])
        for optimizer, scheduler in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.critic(self.generator(batch)).square().mean())
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("limit", [{"max_steps": 12}, {"max_steps": 12, "max_epochs": 10}], ids=str)
def test_a_budget_in_epochs_ends_with_max_steps(limit):
    model = Model(lr=1.0, profile="Linear", schedule_args={"unit": "epochs"})
    fit(model, **limit)
    assert model.rates == pytest.approx([1 - step / 12 for step in range(12)])


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_epochs": 0}, {"limit_train_batches": 0, "max_epochs": 1}])
def test_a_run_without_a_step_is_no_error(settings):
    assert fit(Model(), **settings).global_step == 0
    cycle = {"schedule": "torch.optim.lr_scheduler.OneCycleLR", "schedule_args": {"max_lr": 0.1}}
    assert fit(Model(**cycle), **settings).global_step == 0


def test_without_a_trainer_it_says_what_to_set():
    for schedule in ("lightning_stable.schedules.ProfileLR", "torch.optim.lr_scheduler.OneCycleLR"):
        arguments = {"max_lr": 0.1} if "OneCycle" in schedule else {}
        with pytest.raises(RuntimeError, match=r"asks the trainer how long the run is, and Model has none yet"):
            Model(schedule=schedule, schedule_args=arguments).configure_optimizers()


def test_a_resume_in_epochs_with_other_batches_goes_on_through_the_same_epochs(tmp_path):
    first, second = (Model(lr=1.0, profile="Linear", schedule_args={"unit": "epochs"}) for _ in range(2))
    run = fit(first, max_epochs=4, callbacks=[StopAfter(2)])
    run.save_checkpoint(tmp_path / "two.ckpt")
    trainer(max_epochs=4).fit(second, DataLoader(torch.ones(8, 2), batch_size=4), ckpt_path=tmp_path / "two.ckpt")
    assert second.rates == pytest.approx([0.5, 0.375, 0.25, 0.125])


@pytest.mark.parametrize(("given", "rates"), [(None, [0.0] * 16), (24, [1 - step / 24 for step in range(8, 24)])])
def test_a_run_is_lengthened_by_total_steps(tmp_path, given, rates):
    run = fit(Model(lr=1.0, profile="Linear"), max_epochs=1)
    run.save_checkpoint(tmp_path / "one.ckpt")
    longer = Model(lr=1.0, profile="Linear", schedule_args={"total_steps": given} if given else None)
    said = "total_steps that it was given, 24" if given else "`--lr_scheduler.total_steps=24`"
    with pytest.warns(UserWarning, match=said):
        trainer(max_epochs=3).fit(longer, DataLoader(torch.ones(8, 2)), ckpt_path=tmp_path / "one.ckpt")
    assert longer.rates == pytest.approx(rates)


@pytest.mark.parametrize(
    ("limit", "steps"), [({"max_epochs": 2, "max_steps": 24}, 12), ({"max_epochs": 2, "max_steps": 9}, 5)], ids=str
)
def test_parts_are_as_long_as_the_limit_that_comes_first(limit, steps):
    model = Adversaries(lr=1.0, profile="Linear", parts={"critic": {}, "generator": {}})
    fit(model, **limit)
    assert model.rates == [pytest.approx([1 - step / steps] * 2) for step in range(steps)]


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_steps": 16}], ids=str)
def test_every_part_has_an_optimizer_and_a_schedule_over_the_whole_run(limit):
    parts = {"critic": {"lr": 0.4, "optimizer": "torch.optim.SGD", "profile": "Cosine"}, "generator": None}
    model = Adversaries(lr=0.1, profile="Linear", parts=parts)
    run = fit(model, **limit)
    assert [type(optimizer).__name__ for optimizer in run.optimizers] == ["SGD", "AdamW"]
    assert [[p.shape for p in each.param_groups[0]["params"]] for each in run.optimizers] == [
        [(1, 2), (1,)],
        [(2, 2), (2,)],
    ]
    assert [config.scheduler.total_steps for config in run.lr_scheduler_configs] == [8, 8]
    cosine = [0.2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    linear = [0.1 * (1 - step / 8) for step in range(8)]
    assert model.rates == [pytest.approx([a, b]) for a, b in zip(cosine, linear, strict=True)]


def test_parts_may_have_no_schedule():
    nothing = {"schedule": None, "warmup_steps": 0, "schedule_args": {}}
    model = Adversaries(**nothing, parts={"critic": {}, "generator": {"lr": 0.5}})
    optimizers, schedulers = model.configure_optimizers()
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [1e-3, 0.5]
    assert schedulers == []
    shared = {"profile": "Linear", "warmup_steps": 2, "schedule_args": {"total_steps": 9}}
    model = Adversaries(**shared, parts={"critic": {"schedule": None}, "generator": {}})
    assert len(model.configure_optimizers()[1]) == 1


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"critic": {}}, "must hold all parameters that are trained, and leaves out generator.weight, generator.bias"),
        (
            {"critic": {}, "genrator": {}},
            "must name submodules, which are generator, critic, and theirs, got 'genrator'",
        ),
        ({"critic": {}, "generator": {}, "critic.weight": {}}, "must name submodules"),
    ],
    ids=str,
)
def test_parts_that_are_not_the_model_s_are_refused(parts, said):
    with pytest.raises(ValueError, match=said):
        Adversaries(parts=parts, schedule=None).configure_optimizers()


def test_parts_that_share_parameters_are_refused():
    model = Adversaries(parts={"critic": {}, "generator": {}}, schedule=None)
    model.critic.weight = model.generator.weight
    with pytest.raises(ValueError, match="must not share parameters, and those of critic, generator do"):
        model.configure_optimizers()


def test_layers_below_may_learn_more_slowly_and_roles_decay_or_not():
    model = Model(lr=1.0, weight_decay=0.1, schedule=None, group_args={"no_decay": ["matrix"], "layer_decay": 0.5})
    groups = model.configure_optimizers().param_groups
    assert {group["lr"] for group in groups} == {0.5, 1.0}
    assert {group["weight_decay"] for group in groups if group["params"][0].ndim == 2} >= {0.0}


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
        ({"profile": "Cosin"}, r"`ProfileLR\(profile=\.\.\.\)` must be one of Cosine, "),
        (
            {"profile": "Cosine", "schedule_args": {"profile": "REX"}},
            "must be left out, as it is in `schedule_args`, too",
        ),
        ({"profile": "Cosine", "schedule": "torch.optim.lr_scheduler.StepLR"}, "must be left out, as StepLR has none"),
        ({"group_args": {"lr": 0.1}}, r"\(group_args=\.\.\.\)` must not hold 'lr'"),
        ({"profile": "Linear", "schedule": None}, r"\(profile=\.\.\.\)` must be left out where `schedule` is None"),
        ({"warmup_steps": 5, "schedule": None}, r"\(warmup_steps=\.\.\.\)` must be left out .* got 5"),
        ({"schedule_args": {"min_ratio": 0.1}, "schedule": None}, r"\(schedule_args=\.\.\.\)` must be left out"),
        (
            {"group_args": {"layer_decay": 0.5}, "optimizer": "pytorch_optimizer.Muon"},
            r"\(group_args=\.\.\.\)` must be left out with Muon, .* got \{'layer_decay': 0.5\}",
        ),
        ({"parts": {"body": {"schedule": None, "profile": "REX"}}}, "must be left out where `schedule` is None"),
        ({"parts": {}}, r"\(parts=\.\.\.\)` must map names of submodules to arguments"),
        ({"parts": ["body"]}, r"\(parts=\.\.\.\)` must map names of submodules to arguments"),
        ({"parts": {"body": {"learning_rate": 1}}}, "got an entry with learning_rate"),
        ({"parts": {"body": {"optimizer": "AdamW"}}}, "got 'AdamW', which cannot be found"),
        ({"optimizer": "torch.optim.LBFGS", "weight_decay": 0.1}, "must be 0 with LBFGS, which has no weight decay"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Model(**arguments)
