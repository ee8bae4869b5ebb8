# SPDX-License-Identifier: Apache-2.0
"""Copies run beside forward and backward, and are complete before the optimizer moves."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.guard import Rollback
from lightning_stable.optim import SAM
from lightning_stable.snapshots.transfer import Transfer, copy_in_order
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, without


class LateTransfer(Transfer):
    """As late as a device may be: nothing is copied before somebody waits for it."""

    log: list[str]

    def __init__(self, to):
        super().__init__(to)
        self.queue = []

    def begin(self, copies, sources):
        self.log.append("begin")
        self.queue.append((list(copies), list(sources)))

    def wait(self):
        self.log.append("wait")
        for copies, sources in self.queue:
            super().begin(copies, sources)
        self.queue.clear()


@pytest.fixture
def log(monkeypatch):
    LateTransfer.log = []
    monkeypatch.setattr("lightning_stable.snapshots.snapshot_ring.Transfer", LateTransfer)
    return LateTransfer.log


class Writes(Net):
    def training_step(self, batch, batch_idx):
        LateTransfer.log.append("forward")
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        LateTransfer.log.append("backward")


class WritesSteps(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(lambda *_: LateTransfer.log.append("step"))


def test_a_copy_begins_before_the_forward_pass_and_is_awaited_before_the_step(log):
    run(make_batches(2), [guard(Rollback(), snapshot_every=1), WritesSteps()], model=Writes, epochs=1)
    one_step = "".join(dict.fromkeys(log[: log.index("step") + 1]))
    assert one_step == "beginforwardbackwardwaitstep"
    second = log[log.index("step") + 1 :]
    assert "".join(dict.fromkeys(second)) == "beginforwardbackwardwaitstep"


def sam(parameters):
    return SAM(parameters, "torch.optim.AdamW", lr=0.01, base_args={"amsgrad": True})


MODELS = {"automatic": Net, "by hand": ManualNet, "uphill first": lambda: Net(sam)}


@pytest.mark.parametrize("mode", ["skip", "replay"])
@pytest.mark.parametrize(
    ("model", "accumulate"), [("automatic", 1), ("automatic", 2), ("by hand", 1), ("uphill first", 1)]
)
def test_a_snapshot_is_the_same_however_late_it_is_copied(log, model, accumulate, mode):
    """Snapshots are taken before batches 0, 4 and 8, or 0 and 8, so either way before the window of batch 9."""
    left_out = {8, 9} if accumulate == 2 or mode == "skip" else {9}
    guarded = guard(Rollback(mode=mode, times=99), snapshot_every=4)
    arguments = {"accumulate_grad_batches": accumulate, "model": MODELS[model]}
    actual = run(make_batches(12, {9}), [guarded], **arguments)
    assert_same(actual, run(without(make_batches(12), left_out), **arguments))
    assert "wait" in log


@pytest.mark.parametrize("to", ["device", "host"])
def test_a_copy_on_the_cpu_is_over_at_once_and_lives_beside_its_source(to):
    transfer, source = Transfer(to), torch.arange(6.0).reshape(2, 3).T
    copy = transfer.buffer_like(source)
    transfer.begin([copy], [source])
    assert torch.equal(copy, source)
    assert copy.stride() == source.stride()
    assert not copy.is_pinned()
    source.zero_()
    transfer.wait()
    assert copy.sum() == 15.0


def test_what_may_change_before_the_step_is_copied_in_order():
    copies, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.full((3,), 2.0)]
    copy_in_order(copies, sources)
    sources[0].zero_()
    assert copies[0].tolist() == [1.0, 1.0]
    copy_in_order([], [])


class FakeStream:
    """Writes down what is asked of it."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")


class FakeCudaTensor:
    """Says that it lives on a GPU, and is copied from there."""

    device, is_cuda = torch.device("cuda", 0), True

    def __init__(self, calls):
        self.calls = calls

    def record_stream(self, stream):
        self.calls.append(f"kept for {stream.name}")


class FakeCopy:
    def __init__(self, calls):
        self.calls = calls

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.calls.append("copied")


def test_on_cuda_the_streams_wait_for_each_other_and_the_host_for_none(monkeypatch):
    calls = []
    computation = FakeStream("computation", calls)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("transfer", calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computation)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    transfer = Transfer("host")
    for _ in range(2):
        calls.clear()
        transfer.begin([FakeCopy(calls)], [FakeCudaTensor(calls)])
        assert calls == ["transfer waits for computation", "copied", "kept for transfer"]
        transfer.wait()
        transfer.wait()  # a second time is nothing
        assert calls[3:] == ["computation waits for transfer"]
    assert len(transfer._streams) == 1
