# SPDX-License-Identifier: Apache-2.0
"""`LightningCLI._get`, and what StableCLI makes of schedules and errors."""

import inspect
import logging
import os

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR

from lightning_stable._lightning.command_line.cli import StableCLI, WrongConfiguration, run
from lightning_stable.schedules import ProfileLR
from lightning_stable.testbeds import CharLM, PythonTextDataModule, char_lm
from tests.faulty_runs import Net
from tests.small_fit import LIGHTNING_CLI_WARNS

pytestmark = pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_steps": 6,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "limit_val_batches": 0,
}
MODEL = {
    "class_path": "lightning_stable.testbeds.CharLM",
    "init_args": {"n_layer": 1, "n_head": 2, "d_model": 16, "context": 8, "lr": 0.01},
}
DATA = {
    "class_path": "lightning_stable.testbeds.PythonTextDataModule",
    "init_args": {"context": 8, "batch_size": 2, "batches_per_epoch": 6},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """`seed_everything` leaves variables behind, and the configuration is saved to the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")


def fit(trainer=(), **parts):
    config = {"seed_everything": 0, "trainer": {**TRAINER, **dict(trainer)}, "model": MODEL, "data": DATA, **parts}
    return StableCLI(args={"subcommand": "fit", "fit": config})


@pytest.fixture
def rates(monkeypatch):
    """The learning rate in every training step."""
    seen = []
    training_step = CharLM.training_step

    def step(self, *args, **kwargs):
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(CharLM, "training_step", step)
    return seen


def rex(total_steps, warmup_steps=0):
    schedule = {"total_steps": total_steps, "warmup_steps": warmup_steps}
    return {"class_path": "lightning_stable.schedules.ProfileLR", "init_args": schedule}


def expected_rates(steps, base=0.01, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    schedule, rates = ProfileLR(optimizer, **arguments), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_lightning_cli_still_has_get():
    assert list(inspect.signature(LightningCLI._get).parameters) == ["self", "config", "key", "default"]


def test_lightning_cli_still_calls_what_is_overridden():
    for name, parameters in {
        "_parse_ckpt_path": ["self"],
        "_prepare_subcommand_kwargs": ["self", "subcommand"],
    }.items():
        assert list(inspect.signature(getattr(LightningCLI, name)).parameters) == parameters
    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)
    assert "self._prepare_subcommand_kwargs(" in inspect.getsource(LightningCLI._run_subcommand)


def test_every_command_loads_with_weights_only():
    cli = fit()
    assert cli._prepare_subcommand_kwargs("fit")["weights_only"] is True
    assert "weights_only" not in cli.config["fit"]


def test_get_still_looks_into_the_config_of_the_subcommand():
    cli = fit()
    assert cli._get(cli.config, "trainer.max_steps") == 6
    assert cli._get(cli.config, "nothing.there", "else") == "else"
    assert isinstance(cli._get(cli.config_init, "model"), CharLM)
    assert isinstance(cli._get(cli.config_init, "data"), PythonTextDataModule)


def test_a_schedule_steps_once_per_optimizer_step_and_learns_the_length_of_the_run(rates):
    cli = fit(lr_scheduler=rex(None))
    assert cli.trainer.lr_scheduler_configs[0].interval == "step"
    assert cli.trainer.lr_scheduler_configs[0].scheduler.total_steps == 6
    assert rates == expected_rates(6, total_steps=6)
    assert len(set(rates)) == 6


def test_a_given_length_is_kept(rates):
    fit(lr_scheduler=rex(60, warmup_steps=2))
    assert rates == expected_rates(6, total_steps=60, warmup_steps=2)


def test_accumulated_batches_are_one_step_of_the_schedule(rates):
    cli = fit({"accumulate_grad_batches": 2, "max_steps": -1, "max_epochs": 1}, lr_scheduler=rex(None))
    assert cli.trainer.global_step == 3
    expected = expected_rates(3, total_steps=3)
    assert rates == [expected[0], expected[0], expected[1], expected[1], expected[2], expected[2]]


def test_optimizer_and_schedule_replace_those_of_the_model(rates):
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    cli = fit(optimizer=sgd, lr_scheduler=rex(None))
    assert isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
    assert rates == expected_rates(6, base=0.5, total_steps=6)


def test_muon_gets_the_matrices_and_its_adamw_the_rest(rates):
    pytest.importorskip("pytorch_optimizer")
    muon = {"class_path": "pytorch_optimizer.Muon", "init_args": {"lr": 0.02, "weight_decay": 0.1, "adamw_lr": 3e-3}}
    groups = fit(optimizer=muon, lr_scheduler=rex(None)).trainer.optimizers[0].param_groups
    assert [(group["use_muon"], group["initial_lr"], group["weight_decay"]) for group in groups] == [
        (True, 0.02, 0.1),
        (False, 3e-3, 0.0),
        (False, 3e-3, 0.0),
    ]


def test_norms_and_biases_do_not_decay(rates):
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "weight_decay": 0.1}}
    cli = fit(optimizer=adamw, lr_scheduler=rex(None))
    groups = cli.trainer.optimizers[0].param_groups
    decays = [(group["weight_decay"], {parameter.ndim for parameter in group["params"]}) for group in groups]
    assert decays == [(0.1, {2}), (0.0, {1})]
    assert "name" not in groups[0]
    adamw["init_args"]["weight_decay"] = 0.0
    assert len(fit(optimizer=adamw).trainer.optimizers[0].param_groups) == 1


def test_an_optimizer_alone_has_no_schedule(rates):
    fit(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}})
    assert rates == [0.5] * 6


def test_a_schedule_of_torch_steps_per_step_too(rates):
    fit(lr_scheduler={"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}})
    assert rates == pytest.approx([0.01 * 0.5**step for step in range(6)])


def test_reduce_on_plateau_keeps_its_monitor_and_its_pace():
    module, optimizer = Net(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    configured = StableCLI.configure_optimizers(module, optimizer, ReduceLROnPlateau(optimizer, monitor="val_loss"))
    assert configured["lr_scheduler"]["monitor"] == "val_loss"
    assert "interval" not in configured["lr_scheduler"]
    assert StableCLI.configure_optimizers(module, optimizer) is optimizer
    configured = StableCLI.configure_optimizers(module, optimizer, StepLR(optimizer, 3))
    assert configured["lr_scheduler"]["interval"] == "step"


def write_config(tmp_path, **parts):
    config = {"seed_everything": 0, "trainer": TRAINER, "model": MODEL, "data": DATA, **parts}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_run_without_an_end_cannot_give_a_schedule_its_length(tmp_path):
    config = write_config(tmp_path, lr_scheduler=rex(None))
    with pytest.raises(
        WrongConfiguration, match=r"`ProfileLR\(total_steps=None\)` takes the length of the run, .* no end"
    ):
        run(["fit", "--config", config, "--trainer.max_steps=-1", "--trainer.max_epochs=-1"])


def test_a_schedule_for_two_optimizers_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(CharLM, "configure_optimizers", lambda self: [torch.optim.SGD(self.parameters())])
    with pytest.raises(WrongConfiguration, match=r"CharLM returns list\. Add `--optimizer=AdamW`\."):
        run(["fit", "--config", write_config(tmp_path, lr_scheduler=rex(None))])


def test_an_error_that_is_no_matter_of_configuration_stays_what_it_is(tmp_path, monkeypatch):
    def broken(self, *_):
        raise ValueError("tensors do not fit")

    monkeypatch.setattr(CharLM, "training_step", broken)
    with pytest.raises(ValueError, match="tensors do not fit") as raised:
        run(["fit", "--config", write_config(tmp_path)])
    assert type(raised.value) is ValueError


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(char_lm, "GPT", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(SystemExit) as stop:
        run(["fit", "--config", write_config(tmp_path), "--ckpt_path", "no/such.ckpt"])
    assert stop.value.code == 2
    assert "--ckpt_path no/such.ckpt: no such checkpoint." in capsys.readouterr().err


@pytest.mark.parametrize("frozen", [False, True])
def test_the_size_of_the_model_is_one_line(caplog, monkeypatch, frozen):
    caplog.set_level(logging.INFO)
    if frozen:
        setup = CharLM.__init__

        def half_frozen(self, *args, **kwargs):
            setup(self, *args, **kwargs)
            next(iter(self.parameters())).requires_grad_(False)

        half_frozen.__signature__ = inspect.signature(setup)
        monkeypatch.setattr(CharLM, "__init__", half_frozen)
    fit()
    lines = [record.getMessage() for record in caplog.records if "parameters" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("CharLM: ")
    assert lines[0].endswith(" of them trained" if frozen else " K parameters")


def test_who_asks_for_lightnings_summary_gets_it_instead(caplog, capsys):
    caplog.set_level(logging.INFO)
    fit({"enable_model_summary": True})
    assert "Total params" in capsys.readouterr().out + caplog.text
    assert "CharLM: " not in caplog.text


@pytest.mark.parametrize("writable", [True, False])
def test_a_folder_that_cannot_be_written_to_costs_the_config_and_not_the_run(tmp_path, monkeypatch, writable):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (writable or path != tmp_path))
    warned = []
    monkeypatch.setattr("lightning_stable._lightning.command_line.cli.rank_zero_warn", warned.append)
    assert fit({"default_root_dir": str(tmp_path / "new")}).trainer.global_step == 6
    assert (tmp_path / "new" / "config.yaml").exists() is writable
    assert warned == ([] if writable else [f"config.yaml is not saved: {tmp_path} cannot be written to."])
