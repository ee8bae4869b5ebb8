# SPDX-License-Identifier: Apache-2.0
"""What snapshots take is known before they are made, and right."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.optim import SPAM, StableSPAM
from lightning_stable.snapshots.memory import SnapshotMemory, memory_share, snapshot_memory
from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.transfer import Transfer
from tests.faulty_runs import Net, make_batches, run
from tests.guard.test_spike_guard import guard

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p),
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "rmsprop with all": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "spam": lambda p: SPAM(p),
    "stable spam": lambda p: StableSPAM(p),
}


class Measures(Callback):
    def __init__(self):
        self.measured = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.measured.append(snapshot_memory(trainer, pl_module, self, slots=1))
        if batch_idx == 1:
            self.snapshot = Snapshot(trainer, pl_module, self, Transfer("host"))
            self.snapshot.capture()
            parts = [
                *self.snapshot._parameter_copies,
                *self.snapshot._other_copies,
                *self.snapshot._around._copies,
                *(buffer for one in self.snapshot._optimizers for buffer in one._buffers.values()),
            ]
            assert self.measured[-1].per_slot == sum(part.nbytes for part in parts)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_estimate_is_near_and_the_measurement_exact(optimizer):
    measures = Measures()
    run(make_batches(2), [measures], model=lambda: Net(OPTIMIZERS[optimizer]), epochs=1)
    estimated, measured = measures.measured
    assert not measured.is_estimate
    parameters = len(list(Net().parameters()))
    few = 76 * parameters  # counters, and what StableSPAM knows of each tensor
    assert 0 <= measured.per_slot - estimated.per_slot <= few


def test_an_average_of_the_weights_is_counted():
    plain, averaged = Measures(), Measures()
    run(make_batches(2), [plain], epochs=1)
    run(make_batches(2), [averaged, EMAWeightAveraging()], epochs=1)
    assert averaged.measured[0].per_slot > plain.measured[0].per_slot + 4 * sum(p.numel() for p in Net().parameters())


def test_too_much_is_refused_before_training_and_after_the_first_step(monkeypatch):
    batches, needed = make_batches(4), []
    measures = Measures()
    run(batches, [measures], epochs=1)
    estimated, measured = (2 * memory.per_slot for memory in measures.measured[:2])

    class Forward(Net):
        def training_step(self, batch, batch_idx):
            needed.append(batch_idx)
            return super().training_step(batch, batch_idx)

    def fit(max_bytes):
        needed.clear()
        run(batches, [guard(Rollback(), snapshots=2, max_bytes=max_bytes)], model=Forward, epochs=1)

    message = rf"allows {estimated - 1:,} bytes, .* the 2 snapshots .* need about {estimated:,}, .*keep fewer"
    with pytest.raises(ValueError, match=message):
        fit(estimated - 1)
    assert needed == []
    with pytest.raises(ValueError, match=rf"need {measured:,}, "):
        fit(measured - 1)
    assert needed == [0]
    fit(measured)
    assert needed == [0, 1, 2, 3]


def test_no_memory_is_needed_where_nothing_goes_back():
    guarded = guard(SkipStep(), max_bytes=0)
    run(make_batches(3), [guarded], epochs=1)
    assert guarded._journal.snapshots == ""


def test_the_summary_says_what_the_snapshots_take_and_a_large_share_is_announced(capsys, caplog, monkeypatch):
    monkeypatch.setattr("lightning_stable.snapshots.snapshot_ring.memory_share", lambda *_: 0.25)
    with caplog.at_level("INFO"):
        run(make_batches(3), [SpikeGuard(snapshots=2)], epochs=1)
    assert "SpikeGuard keeps snapshots, 2 of about 2.5 kB, in host memory: 25% of it." in caplog.text
    assert "2 of 2.5 kB, in host memory" in capsys.readouterr().out


def test_a_small_share_is_not_announced(caplog):
    with caplog.at_level("INFO"):
        run(make_batches(3), [SpikeGuard()], epochs=1)
    assert "keeps snapshots" not in caplog.text


def test_the_share_is_that_of_the_memory_of_the_machine():
    shares = []

    class Share(Callback):
        def on_train_start(self, trainer, pl_module):
            shares.extend(memory_share(trainer, size, on_host=True) for size in (1, 10**9))

    run(make_batches(1), [Share()], epochs=1)
    assert 0 < shares[0] < 1e-6
    assert shares[1] == pytest.approx(1e9 * shares[0])


def test_where_nobody_can_tell_the_share_is_none(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert memory_share(trainer, 10**9, on_host=True) == 0.0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (4e12, "4000.0 GB")]
)
def test_a_size_is_written_for_people(size, text):
    assert str(SnapshotMemory(1, int(size), is_estimate=False)) == f"1 of {text}"
