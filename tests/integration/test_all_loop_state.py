# SPDX-License-Identifier: Apache-2.0
"""Every attribute of the loops and of what hangs on them, and what the guard does with it.

An attribute that the table does not know fails a test: a new Lightning, or torch, may have given its loops a state that
a step changes, and that the guard would have to put back. What the table says is then tried on runs: what is said to be
put back has changed in a step, and is as it was after one that was undone; what is said to be fixed has not changed.
"""

from collections.abc import Mapping

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress, _ReadyCompletedTracker

from lightning_stable.guard import Rollback, SkipStep
from tests.faulty_runs import ManualNet, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, scaler_plugin

STEP = "put back by StepState"
SNAPSHOT = "changes in the optimizer's step only: kept from it by a veto, put back by Snapshot"
DATA = "the place in the data: rewound by a replay, else left where it is"
FIXED = "does not change in a step"
OURS = "the guard's own"
ASIDE = "not the model's: logging, messages, wall clock, the batch that runs"

TABLE = {
    "automatic_optimization": {
        FIXED: "_skip_backward",
        OURS: "run",
    },
    "automatic_optimization.optim_progress.optimizer.step": {STEP: "current total"},
    "automatic_optimization.optim_progress.optimizer.zero_grad": {STEP: "current total"},
    "epoch_loop": {
        DATA: "_skip_next_val",
        FIXED: "_restart_stage max_steps min_steps val_loop",
        ASIDE: "_batches_that_stepped _warning_cache",
    },
    "epoch_loop.batch_progress": {DATA: "current total is_last_batch"},
    "epoch_loop.scheduler_progress": {STEP: "current total"},
    "fetcher": {
        DATA: "batches done fetched",
        FIXED: "_combined_loader iterator length prefetch_batches _start_profiler _stop_profiler",
    },
    "fit_loop": {
        FIXED: "_combined_loader _combined_loader_states_to_load _data_fetcher _data_source"
        " _last_train_dl_reload_epoch _restart_stage max_batches max_epochs min_epochs",
        OURS: "_load_combined_loader_states",
    },
    "fit_loop.epoch_progress": {FIXED: "current total"},
    "lightning_optimizer": {FIXED: "_on_after_step _on_before_step _optimizer _strategy"},
    "logger_connector": {
        FIXED: "_first_loop_iter trainer",
        ASIDE: "_callback_metrics _current_fx _logged_metrics _progress_bar_metrics",
    },
    "lr_scheduler": {
        STEP: "_last_lr _step_count last_epoch",
        FIXED: "_get_lr_called_within_step _is_initial base_lrs lr_lambdas optimizer",
    },
    "lr_scheduler_config": {
        FIXED: "frequency interval monitor name reduce_on_plateau scheduler strict",
    },
    "manual_optimization": {
        OURS: "run",
        ASIDE: "_output",
    },
    "manual_optimization.optim_step_progress": {STEP: "current total"},
    "module": {
        FIXED: "_automatic_optimization _compiler_ctx _device _device_mesh _dtype _example_input_array _fabric"
        " _fabric_optimizers _hparams _jit_is_scripting _log_hyperparams _metric_attributes _param_requires_grad_state"
        " _strict_loading _trainer allow_zero_length_dataloader_with_multiple_devices prepare_data_per_node",
        ASIDE: "_current_fx_name",
    },
    "optimizer": {
        STEP: "param_groups",
        SNAPSHOT: "state",
        FIXED: "_optimizer_load_state_dict_post_hooks _optimizer_load_state_dict_pre_hooks"
        " _optimizer_state_dict_post_hooks _optimizer_state_dict_pre_hooks _optimizer_step_post_hooks"
        " _optimizer_step_pre_hooks _zero_grad_profile_name defaults",
        OURS: "_lightning_stable_step_gate step",
        ASIDE: "_opt_called _warned_capturable_if_run_uncaptured",
    },
    "precision": {FIXED: "device precision scaler"},
    "results": {
        FIXED: "dataloader_idx training",
        ASIDE: "batch batch_size",
    },
    "results.metric": {
        STEP: "_forward_cache _update_count cumulated_batch_size value",
        FIXED: "_TORCH_GREATER_EQUAL_2_1 _cache _computed _defaults _device _dtype _dtype_convert _enable_grad"
        " _is_synced _persistent _reductions _should_unsync _to_sync _update_signature compute compute_on_cpu "
        " compute_with_cache dist_sync_fn dist_sync_on_step distributed_available_fn has_reset is_tensor meta"
        " process_group sync_on_compute update",
    },
    "scaler": {
        STEP: "_growth_tracker _scale",
        FIXED: "_backoff_factor _device _enabled _growth_factor _growth_interval",
        # of the step that runs, empty between two of them; where a scaler begins, which this one has done
        ASIDE: "_per_optimizer_states _init_growth_tracker _init_scale",
    },
    "strategy": {
        FIXED: "_accelerator _checkpoint_io _forward_redirection _launcher _lightning_module _lightning_optimizers"
        " _model _optimizers _precision_plugin _root_device global_rank local_rank lr_scheduler_configs world_size",
    },
    "trainer": {
        STEP: "should_stop",
        FIXED: "_accelerator_connector _callback_connector _checkpoint_connector _data_connector _default_root_dir"
        " _detect_anomaly _logger_connector _loggers _model_registry _signal_connector _val_check_time_interval"
        " accumulate_grad_batches barebones callbacks check_val_every_n_epoch datamodule enable_autolog_hparams"
        " fast_dev_run gradient_clip_algorithm gradient_clip_val limit_predict_batches limit_test_batches"
        " limit_train_batches limit_val_batches log_every_n_steps num_sanity_val_steps overfit_batches predict_loop"
        " profiler reload_dataloaders_every_n_epochs state test_loop val_check_batch val_check_interval validate_loop",
    },
}
OF_EVERY_LOOP = {"_loaded_from_state_dict", "_restarting", "_resuming_from_checkpoint", "trainer"}  # FIXED
WHAT_TO_DO = (
    f"is not in the table. Lightning {lightning.__version__} or torch {torch.__version__} may be newer than the table:"
    " find out what the attribute is for. If a training step changes it, put it back in `guard/step_state.py`, by"
    " `_lightning/progress.py` or `_lightning/results.py`; then enter it here."
)


def kind_of(owner, name):
    """What the table says, or None."""
    if name in OF_EVERY_LOOP and owner in ("automatic_optimization", "epoch_loop", "fit_loop", "manual_optimization"):
        return FIXED
    return next((kind for kind, names in TABLE.get(owner, {}).items() if name in names.split()), None)


def attributes(trainer):
    """From (owner, name) to value, of everything that runs a training step."""
    fit_loop = trainer.fit_loop
    found = dict(_of("trainer", trainer))
    found.update(_walk("fit_loop", fit_loop))
    found.pop(("trainer", "fit_loop"))
    owners = {
        "fetcher": fit_loop._data_fetcher,
        "lightning_optimizer": trainer.strategy._lightning_optimizers[0],
        "logger_connector": trainer._logger_connector,
        "lr_scheduler": trainer.lr_scheduler_configs[0].scheduler,
        "lr_scheduler_config": trainer.lr_scheduler_configs[0],
        "module": trainer.lightning_module,
        "optimizer": trainer.optimizers[0],
        "precision": trainer.precision_plugin,
        "results": fit_loop.epoch_loop._results,
        "scaler": getattr(trainer.precision_plugin, "scaler", None),
        "strategy": trainer.strategy,
    }
    for owner, thing in owners.items():
        found.update(_of(owner, thing) if thing is not None else {})
    found.update(_of("results.metric", fit_loop.epoch_loop._results["training_step.train_loss"]))
    return found


def _of(owner, thing):
    given = vars(torch.nn.Module()) if isinstance(thing, torch.nn.Module) else {}
    own = {*vars(LightningModule())} if isinstance(thing, LightningModule) else {*vars(thing)}  # not what users add
    return {(owner, name): value for name, value in vars(thing).items() if name in own and name not in given}


def _walk(owner, loop):
    """Loops and their progress by the shortest name; counters are one value each."""
    found = {}
    for (_, name), value in _of(owner, loop).items():
        is_loop = isinstance(value, _Loop) and name != "val_loop"  # which runs between steps
        is_progress = isinstance(value, _BaseProgress) and not isinstance(value, _ReadyCompletedTracker)
        if is_loop or is_progress:
            found.update(_walk(name if is_loop else f"{owner}.{name}", value))
        elif name != "_results":  # an owner of its own
            found[owner, name] = value
    return found


def frozen(value):
    """A copy of what may be changed in place; other objects stand for themselves."""
    if isinstance(value, _ReadyCompletedTracker):
        return dict(vars(value))
    if isinstance(value, torch.nn.Parameter):
        return id(value)  # weights are compared elsewhere
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {id(key) if isinstance(key, torch.Tensor) else key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value


class Look(Callback):
    """Behind the guard: everything before and after each step."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop._results:
            self.before.append({name: frozen(value) for name, value in attributes(trainer).items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.before:
            self.after.append({name: frozen(value) for name, value in attributes(trainer).items()})


SETTINGS = {
    "automatic": dict,
    "manual": lambda: {"model": ManualNet},
    "scaler": lambda: {"plugins": [scaler_plugin()]},
}
BAD = 6  # of the batches; looking begins at the second step, where something has been logged


class Stop(Callback):
    """Asks in a bad step that the run be stopped, which a step that is left out must not have done."""

    def on_before_backward(self, trainer, pl_module, loss):
        if not loss.isfinite():
            trainer.should_stop = True


def looked_at(setting, *ladder, bad=(), **arguments):
    look = Look()
    run(make_batches(9, bad), [*ladder, Stop(), look], epochs=1, min_epochs=1, **SETTINGS[setting](), **arguments)
    return look


def is_same(one, other):
    try:
        assert_same(one, other)
    except AssertionError:
        return False
    return True


def changes(before, after, *kinds):
    """What of these kinds is not as it was."""
    names = [name for name in before.keys() | after.keys() if kind_of(*name) in kinds]
    return {name for name in names if not is_same(after.get(name), before.get(name))}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_table_knows_every_attribute(setting):
    look = looked_at(setting, guard(SkipStep(), Rollback()))
    known = {".".join(name) for name in look.before[-1] if kind_of(*name)}
    for name in sorted({".".join(name) for name in look.before[-1]} - known):
        pytest.fail(f"{name} {WHAT_TO_DO}")


def test_no_attribute_has_two_entries():
    for owner, kinds in TABLE.items():
        names = [name for text in kinds.values() for name in text.split()]
        assert len(names) == len(set(names)), owner


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_fixed_does_not_change_in_a_step(setting):
    look = looked_at(setting)
    assert len(look.before) == len(look.after) == 8
    for before, after in zip(look.before, look.after, strict=True):
        assert changes(before, after, FIXED) == set()


def test_what_is_put_back_changes_in_a_step():
    """Otherwise the tests below would say nothing."""
    changed = {("trainer", "should_stop")}  # below, in the bad step
    for setting in SETTINGS:
        look = looked_at(setting)
        for before, after in zip(look.before, look.after, strict=True):
            changed |= changes(before, after, STEP, SNAPSHOT)
    every = {
        (owner, name)
        for owner, kinds in TABLE.items()
        for kind in (STEP, SNAPSHOT)
        for name in kinds.get(kind, "").split()
    }
    assert changed == every


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_that_was_left_out_leaves_all_of_it_as_it_was(setting):
    look = looked_at(setting, guard(SkipStep(times=9)), bad={BAD})
    before, after = look.before[BAD - 1], look.after[BAD - 1]
    assert changes(before, after, STEP, SNAPSHOT, FIXED) == set()
    assert changes(before, look.before[BAD], STEP, SNAPSHOT, FIXED) == set()
    assert changes(look.before[BAD], look.after[BAD], SNAPSHOT) != set()


@pytest.mark.parametrize("mode", ["skip", "replay"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_rollback_to_the_step_before_leaves_all_of_it_as_it_was_then(setting, mode):
    guarded = guard(Rollback(mode, times=9), snapshot_every=2)  # before the steps 0, 2, 4, 6, ...
    look = looked_at(setting, guarded, bad={BAD + 1})
    assert [incident.steps_rolled_back for incident in guarded.incidents] == [1]
    then, after = look.before[BAD - 1], look.after[BAD]
    assert changes(then, after, STEP, SNAPSHOT, FIXED) == set()
    assert changes(look.before[BAD], after, STEP, SNAPSHOT) != set()  # between the two a step was made
    places = [at["epoch_loop.batch_progress", "total"]["ready"] for at in (look.before[BAD], look.before[BAD + 1])]
    assert places == ([BAD + 2, BAD + 3] if mode == "skip" else [BAD + 2, BAD + 2])
