# SPDX-License-Identifier: Apache-2.0
"""What every monitor owes, asked of each one the room exports."""

import inspect
import pickle

import jsonargparse
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import lightning_stable.monitors as room
from tests.faulty_runs import assert_same, make_batches, run
from tests.monitors.attentive_runs import AttentiveNet, ManualAttentiveNet, Remembers

MONITORS = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Callback) and not inspect.isabstract(member)
]
LOGGERS = {"none": lambda path: False, "csv": CSVLogger, "tensorboard": TensorBoardLogger}
SETTINGS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "clipping": {"gradient_clip_val": 0.1},
    "manual": {"model": ManualAttentiveNet},
    "sanity check": {"num_sanity_val_steps": 2, "val_check_interval": 2},
}


@pytest.fixture(params=MONITORS, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def outcome(callbacks, **settings):
    return run(make_batches(6), callbacks, **{"model": AttentiveNet, "epochs": 2, **settings})


def test_the_room_is_not_empty():
    assert {member.__name__ for member in MONITORS} >= {"AttentionEntropyMonitor", "GradientNormMonitor"}


def test_it_is_a_monitor_named_one(kind):
    assert issubclass(kind, room.Monitor)
    assert kind.__name__.endswith("Monitor")


def test_it_constructs_with_defaults_pickles_and_comes_from_yaml(kind):
    kind()
    assert type(pickle.loads(pickle.dumps(kind()))) is kind
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--monitor", type=Callback)
    config = parser.parse_args([f"--monitor={kind.__module__}.{kind.__name__}", "--monitor.every_n_steps=7"])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # until jsonargparse 4.48
    monitor = instantiate(config).monitor
    assert type(monitor) is kind
    assert monitor.every_n_steps == 7


@pytest.mark.parametrize("every", [0, -3])
def test_a_pace_of_less_than_one_step_is_refused(kind, every):
    with pytest.raises(ValueError, match=rf"`{kind.__name__}\(every_n_steps=\.\.\.\)` must be at least 1, got {every}"):
        kind(every_n_steps=every)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_training_with_and_without_it_is_bit_identical(kind, every, settings):
    functions = F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax
    watched = outcome([kind(every_n_steps=every)], **SETTINGS[settings])
    assert_same(watched, outcome([], **SETTINGS[settings]))
    assert functions == (F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax)


@pytest.mark.parametrize("logger", LOGGERS)
def test_any_logger_will_do_and_changes_nothing(kind, logger, tmp_path):
    watched = outcome([kind(every_n_steps=1)], logger=LOGGERS[logger](tmp_path))
    assert any(key.startswith("stability/") for key in watched.trainer.callback_metrics)
    assert_same(watched, outcome([], logger=False))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_it_logs_at_its_steps_and_at_no_others(kind, accumulate):
    logger = Remembers()
    outcome([kind(every_n_steps=2)], logger=logger, accumulate_grad_batches=accumulate)
    steps = {1: 12, 2: 6, 4: 4}[accumulate]  # the last window of an epoch is shorter
    assert list(logger.sent) == list(range(0, steps, 2))
    assert all(sent and all(isinstance(value, float) for value in sent.values()) for sent in logger.sent.values())


def test_it_measures_nothing_outside_of_training(kind):
    logger, monitor = Remembers(), kind(every_n_steps=1)
    model = AttentiveNet()
    batches = torch.utils.data.DataLoader(make_batches(2), batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[monitor],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(model, batches, verbose=False)
    assert logger.sent == {}
    assert not monitor.measuring


def test_a_run_that_turns_to_nan_is_watched_to_the_end(kind, tmp_path):
    logger = Remembers()
    settings = {"model": AttentiveNet, "epochs": 1, "logger": [logger, TensorBoardLogger(tmp_path)]}
    run(make_batches(4, bad=[1]), [kind(every_n_steps=1)], **settings)
    assert list(logger.sent) == [0, 1, 2, 3]
    assert any(value != value for value in logger.sent[3].values())


def test_a_resumed_run_measures_at_the_same_steps(kind, tmp_path):
    def steps(**settings):
        logger = Remembers()
        outcome([kind(every_n_steps=3)], logger=logger, **settings)
        return list(logger.sent)

    save = {"after": lambda trainer: trainer.save_checkpoint(tmp_path / "mid.ckpt")}
    assert steps(epochs=3) == [0, 3, 6, 9, 12, 15]
    assert steps(epochs=1, **save) + steps(epochs=3, ckpt_path=tmp_path / "mid.ckpt") == [0, 3, 6, 9, 12, 15]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("way", ["raise", "none", "skip epoch"])
def test_a_step_cut_short_leaves_nothing_behind(kind, way):
    functions = F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax

    class CutShort(AttentiveNet):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if way == "skip epoch" and batch_idx == 2 else None

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 2 and way == "raise":
                raise KeyError("on purpose")
            return None if batch_idx == 2 and way == "none" else loss

        def on_train_epoch_end(self):
            assert functions == (F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax)

    monitor = kind(every_n_steps=1)
    if way == "raise":
        with pytest.raises(KeyError, match="on purpose"):
            outcome([monitor], model=CutShort)
    else:
        outcome([monitor], model=CutShort)
    assert functions == (F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax)
    assert not monitor.measuring
