# SPDX-License-Identifier: Apache-2.0
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as imported_by_name
from torch.utils.checkpoint import checkpoint

from lightning_stable.functional import attention_statistics
from lightning_stable.monitors import AttentionEntropyMonitor
from tests.faulty_runs import Net, TextNet, assert_same, make_batches, run
from tests.monitors.attentive_runs import LAYERS, AttentiveNet, ManualAttentiveNet, Remembers

ENTROPY, LOGIT = "stability/attention_entropy", "stability/attention_max_logit"
KEYS = {f"{ENTROPY}/{where}" for where in (*LAYERS, "min", "mean")} | {f"{LOGIT}/{where}" for where in (*LAYERS, "max")}


def watch(model, monitor=None, batches=4, **settings):
    logger = Remembers()
    settings = {"epochs": 1, "logger": logger, **settings}
    outcome = run(make_batches(batches), [monitor or AttentionEntropyMonitor(every_n_steps=1)], model=model, **settings)
    return logger.sent, outcome


@pytest.mark.parametrize("max_queries", [128, 3])
def test_numbers_are_those_of_the_functional_on_the_captured_q_and_k(max_queries):
    kept = []

    class Keeps(AttentiveNet):
        def __init__(self):
            super().__init__()
            kept.append(self.layers[0].attention.seen)

    sent, _ = watch(Keeps, AttentionEntropyMonitor(every_n_steps=2, max_queries=max_queries))
    assert list(sent) == [0, 2]
    for step, numbers in sent.items():
        q, k = kept[0][step]
        entropy, max_logit = attention_statistics(q, k, is_causal=True, max_queries=max_queries)
        assert numbers[f"{ENTROPY}/layers.0.attention"] == pytest.approx(entropy.mean().item(), rel=1e-6)
        assert numbers[f"{LOGIT}/layers.0.attention"] == pytest.approx(max_logit.max().item(), rel=1e-6)
        assert numbers.keys() == KEYS
        means = [numbers[f"{ENTROPY}/{layer}"] for layer in LAYERS]
        assert numbers[f"{ENTROPY}/mean"] == pytest.approx(sum(means) / 3, rel=1e-6)
        assert numbers[f"{ENTROPY}/min"] <= entropy.mean(0).min().item() + 1e-6
        assert numbers[f"{LOGIT}/max"] == max(numbers[f"{LOGIT}/{layer}"] for layer in LAYERS)
        assert all(0 < mean <= math.log(8) + 1e-6 for mean in means)


class Collapsing(Net):
    """A head whose logits grow tenfold at every step."""

    def __init__(self):
        super().__init__()
        self.q = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0))

    def training_step(self, batch, batch_idx):
        q = self.q * torch.tensor([10.0**batch_idx, 1.0])[:, None, None]
        F.scaled_dot_product_attention(q, self.q, self.q)
        return super().training_step(batch, batch_idx)


def test_a_head_that_collapses_is_seen_in_min_and_max():
    sent, _ = watch(Collapsing, batches=5)
    least = [numbers[f"{ENTROPY}/min"] for numbers in sent.values()]
    most = [numbers[f"{LOGIT}/max"] for numbers in sent.values()]
    assert least == sorted(least, reverse=True)
    assert least[0] > 0.5
    assert least[-1] < 1e-3
    assert most[4] == pytest.approx(1000 * most[1])
    assert all(numbers[f"{ENTROPY}/mean"] > 0.4 for numbers in sent.values())
    assert all(f"{ENTROPY}/Collapsing" in numbers for numbers in sent.values())  # called by the LightningModule itself


def test_functions_are_replaced_only_from_the_start_of_a_measured_batch_to_its_backward():
    original, seen = F.scaled_dot_product_attention, []

    class Looks(Callback):
        def look(self, *args):
            seen.append(F.scaled_dot_product_attention is original)

        on_train_batch_start = on_before_backward = on_train_batch_end = on_validation_batch_start = look

    run(make_batches(2), [AttentionEntropyMonitor(every_n_steps=2), Looks()], model=AttentiveNet, epochs=1)
    assert seen == [False, True, True] + [True, True, True] + [True] * 3


def test_the_guard_may_watch_the_numbers_in_the_same_step():
    seen = []

    class Watches(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(trainer.callback_metrics[f"{ENTROPY}/min"].item())

    callbacks = [AttentionEntropyMonitor(every_n_steps=1), Watches()]
    logger = Remembers()
    run(make_batches(3), callbacks, model=AttentiveNet, epochs=1, logger=logger)
    assert seen == [numbers[f"{ENTROPY}/min"] for numbers in logger.sent.values()]


def test_manual_optimization_is_watched_up_to_the_first_backward():
    sent, _ = watch(ManualAttentiveNet)
    assert all(numbers.keys() == KEYS for numbers in sent.values())
    assert len(sent) == 4


class Twice(AttentiveNet):
    """Attends twice in a step, the second time to other numbers, and perhaps with other heads."""

    heads = 2

    def training_step(self, batch, batch_idx):
        self.attend(batch["x"][:, None, :, None].expand(-1, self.heads, -1, 2) * 100)
        return super().training_step(batch, batch_idx)

    def attend(self, q):
        F.scaled_dot_product_attention(q, q, q)
        F.scaled_dot_product_attention(q[:, :1] * 0, q[:, :1], q[:, :1])


@pytest.mark.parametrize("heads", [1, 2])
def test_calls_of_one_module_are_averaged(heads):
    model = type("Twice", (Twice,), {"heads": heads})
    sent, _ = watch(model, batches=1)
    q = make_batches(1)[0]["x"][:, None, :, None].expand(-1, 1, -1, 2) * 100
    entropy, max_logit = attention_statistics(q, q)
    one, uniform = entropy.mean().item(), math.log(8)
    expected = (one + uniform) / 2 if heads == 1 else (2 * one + uniform) / 3  # unlike heads lie side by side
    assert sent[0][f"{ENTROPY}/Twice"] == pytest.approx(expected, rel=1e-5)
    assert sent[0][f"{LOGIT}/Twice"] == pytest.approx(max_logit.max().item())


class Checkpointed(AttentiveNet):
    def forward(self, x):
        h = checkpoint(self.layers[0], x, use_reentrant=False) if self.training else self.layers[0](x)
        for layer in self.layers[1:]:
            h = layer(h)
        return h


def test_recomputation_under_activation_checkpointing_counts_once():
    monitor, counts = AttentionEntropyMonitor(every_n_steps=1), []
    measure = monitor.measure

    def counting(trainer, pl_module):
        counts.append([len(calls) for calls in monitor._tap.seen.values()])
        return measure(trainer, pl_module)

    monitor.measure = counting
    _, watched = watch(Checkpointed, monitor)
    assert counts == [[1, 1, 1]] * 4
    assert_same(watched, run(make_batches(4), model=Checkpointed, epochs=1))


def test_a_gpt_is_watched_without_a_change_to_it():
    logger = Remembers()
    batches = make_batches(3, kind="text")
    watched = run(batches, [AttentionEntropyMonitor(every_n_steps=1)], model=TextNet, epochs=1, logger=logger)
    assert_same(watched, run(batches, model=TextNet, epochs=1))
    assert {f"{ENTROPY}/gpt.blocks.0.attn", f"{ENTROPY}/gpt.blocks.1.attn"} < logger.sent[0].keys()


class Compiled(AttentiveNet):
    def __init__(self):
        super().__init__()
        self.layers[0] = torch.compile(self.layers[0], backend="aot_eager")


@pytest.mark.filterwarnings("ignore:.*saw no attention")
@pytest.mark.parametrize("uncompile", [False, True])
def test_compiled_attention_is_seen_on_demand(uncompile):
    torch._dynamo.reset()
    sent, watched = watch(Compiled, AttentionEntropyMonitor(every_n_steps=2, uncompile=uncompile))
    if uncompile:
        assert all(numbers.keys() == KEYS for numbers in sent.values())  # no `_orig_mod` in the paths
        assert len(sent) == 2
    else:
        assert sent == {}
        torch._dynamo.reset()
        assert_same(watched, run(make_batches(4), model=Compiled, epochs=1))
    torch._dynamo.reset()


class ByName(AttentiveNet):
    def __init__(self):
        super().__init__()
        self.layers[0] = nn.Identity()

    def training_step(self, batch, batch_idx):
        q = batch["x"][:, None, :, None]
        imported_by_name(q, q, q)
        return super().training_step(batch, batch_idx)


def test_who_sees_nothing_is_told_once_what_to_do():
    with pytest.warns(UserWarning, match=r"saw no attention.*call `F\.scaled_dot_product_attention`") as warnings:
        sent, watched = watch(ByName)
    assert sent == {}
    assert len([warning for warning in warnings if "saw no attention" in str(warning.message)]) == 1
    assert not [key for key in watched.trainer.callback_metrics if key.startswith("stability/")]


class Unreadable(AttentiveNet):
    def training_step(self, batch, batch_idx):
        q = batch["x"][:, None, None, :, None].expand(-1, 1, 2, -1, -1)
        torch.func.vmap(lambda q: F.scaled_dot_product_attention(q, q, q))(q)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_cannot_be_read_is_named_once_and_the_rest_is_watched():
    with pytest.warns(UserWarning, match="cannot read the attention of `Unreadable`") as warnings:
        sent, _ = watch(Unreadable)
    assert all(numbers.keys() == KEYS for numbers in sent.values())
    assert len([warning for warning in warnings if "cannot read" in str(warning.message)]) == 1


def test_tensorboard_gets_scalars_a_histogram_and_a_heat_map(tmp_path):
    watch(AttentiveNet, AttentionEntropyMonitor(every_n_steps=2), logger=TensorBoardLogger(tmp_path))
    everything = {"scalars": 0, "histograms": 0, "images": 0}
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"), size_guidance=everything)
    events.Reload()
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("stability/")} == KEYS
    assert [event.step for event in events.Scalars(f"{ENTROPY}/min")] == [0, 2]
    (histogram,) = events.Tags()["histograms"]
    assert histogram == f"{ENTROPY}/heads"
    assert [event.histogram_value.num for event in events.Histograms(histogram)] == [6, 6]
    assert events.Tags()["images"] == [f"{ENTROPY}/map"]
    assert [event.step for event in events.Images(f"{ENTROPY}/map")] == [0, 2]
    assert events.Images(f"{ENTROPY}/map")[0].width > 100


def test_without_matplotlib_there_is_no_heat_map(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    watch(AttentiveNet, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    events.Reload()
    assert events.Tags()["images"] == []
    assert events.Tags()["histograms"] == [f"{ENTROPY}/heads"]


def test_a_csv_file_gets_the_scalars(tmp_path):
    watch(AttentiveNet, logger=CSVLogger(tmp_path))
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) >= KEYS


def test_layers_with_unlike_numbers_of_heads_share_a_heat_map(tmp_path):
    model = type("Twice", (Twice,), {"heads": 5})
    sent = Remembers()
    watch(model, logger=[TensorBoardLogger(tmp_path), sent])
    assert f"{ENTROPY}/Twice" in sent.sent[0]


def test_half_precision_is_watched():
    sent, watched = watch(AttentiveNet, precision="bf16-mixed")
    assert all(numbers.keys() == KEYS for numbers in sent.values())
    assert_same(watched, run(make_batches(4), model=AttentiveNet, epochs=1, precision="bf16-mixed"))


def test_a_subsample_of_less_than_one_query_is_refused():
    with pytest.raises(
        ValueError, match=r"`AttentionEntropyMonitor\(max_queries=\.\.\.\)` must be at least 1, got 0\."
    ):
        AttentionEntropyMonitor(max_queries=0)
