# SPDX-License-Identifier: Apache-2.0
import copy
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks import GradientNormRecorder
from lightning_stable.callbacks.gradient_norm_recorder import _Means
from lightning_stable.guard import SkipStep, SpikeGuard
from tests.faulty_runs import Net, make_batches, run


class Reference(Callback):
    """The same norms, number by number, in float64."""

    def __init__(self, order):
        self.order, self.norms = order, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        numbers = [x for p in pl_module.parameters() if p.grad is not None for x in p.grad.flatten().tolist()]
        self.norms.append(sum(abs(x) ** self.order for x in numbers) ** (1 / self.order))


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1e-3}], ids=str)
def test_it_is_the_norm_of_all_gradients_before_clipping(tmp_path, norm, order, settings):
    recorder, reference = GradientNormRecorder(norm), Reference(order)
    run(make_batches(6), [recorder, reference], epochs=1, default_root_dir=tmp_path, **settings)
    assert recorder.norms == pytest.approx(reference.norms, rel=1e-5)
    written = json.loads((tmp_path / "gradient_norms.json").read_text())
    assert written == {"norm": norm, "steps_per_value": 1, "gradient_norms": recorder.norms}


@pytest.mark.parametrize(("optimizer", "norm"), [(torch.optim.SGD, "l2"), (torch.optim.Adam, "l1")])
def test_the_optimizer_decides_which_norm(tmp_path, optimizer, norm):
    recorder = GradientNormRecorder()
    run(
        make_batches(3),
        [recorder],
        model=lambda: Net(optimizer=lambda p: optimizer(p, lr=0.01)),
        epochs=1,
        default_root_dir=tmp_path,
    )
    assert json.loads((tmp_path / "gradient_norms.json").read_text())["norm"] == norm


def test_a_step_that_the_guard_undoes_is_forgotten(tmp_path):
    guarded, clean = GradientNormRecorder("l2"), GradientNormRecorder("l2")
    run(make_batches(8, {5}), [SpikeGuard(ladder=[SkipStep()]), guarded], epochs=1, default_root_dir=tmp_path)
    batches = make_batches(8, {5})
    run([batch for index, batch in enumerate(batches) if index != 5], [clean], epochs=1, default_root_dir=tmp_path)
    assert guarded.norms == clean.norms
    assert len(clean.norms) == 7


def test_what_is_not_finite_is_not_recorded(tmp_path):
    recorder = GradientNormRecorder("l2")
    run(make_batches(4, {3}), [recorder], epochs=1, default_root_dir=tmp_path)
    assert len(recorder.norms) == 3
    assert all(map(math.isfinite, recorder.norms))


def test_many_values_become_means_of_neighbours():
    means = _Means()
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, 10_000, 7):
        means.extend(values[start : start + 7])
    assert means.stride == 8
    expected = [sum(values[i : i + 8]) / 8 for i in range(0, 10_000, 8)]
    assert means.values == pytest.approx(expected)
    twin = _Means()
    twin.load_state_dict(means.state_dict())
    means.extend(values)
    twin.extend(values)
    assert twin.values == means.values


class Steps:
    """A recorder without a run around it."""

    def __init__(self, recorder, kind=torch.optim.Adam):
        self.recorder, self.log_dir, self.precision_plugin = recorder, None, None
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizers = [kind([self.parameter], lr=0.1)]

    def take(self, norms):
        for norm in norms:
            self.parameter.grad = torch.tensor([float(norm)])
            self.recorder.on_before_optimizer_step(self, None, self.optimizers[0])


def test_norms_are_taken_from_the_device_before_they_are_many(monkeypatch):
    recorder, lengths = GradientNormRecorder(), []
    extend = recorder._norms.extend
    monkeypatch.setattr(recorder._norms, "extend", lambda values: lengths.append(len(values)) or extend(values))
    Steps(recorder).take(range(1, 2051))
    assert lengths == [1024, 1024]
    assert recorder.every == 2
    assert recorder.norms == [1.5 + 2 * pair for pair in range(1025)]


def test_a_state_waits_for_nothing_and_holds_all(tmp_path, monkeypatch):
    recorder, twin = GradientNormRecorder(), GradientNormRecorder()
    steps = Steps(recorder)
    steps.take(range(1, 1501))
    with monkeypatch.context() as patched:
        for name in ("tolist", "item", "__float__"):  # each waits for the device
            patched.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits"))
        state = copy.deepcopy(recorder.state_dict())
    torch.save(state, tmp_path / "state.pt")
    steps.take([7.0] * 600)
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert twin.norms == [float(norm) for norm in range(1, 1501)]
    Steps(twin).take([7.0] * 600)
    assert (twin.norms, twin.every) == (recorder.norms, recorder.every)
    recorder.load_state_dict(state)  # a rollback
    assert recorder.norms == [float(norm) for norm in range(1, 1501)]


def test_a_state_is_not_changed_by_what_comes_after_it():
    recorder = GradientNormRecorder()
    steps = Steps(recorder)
    steps.take([1.0, 2.0])
    state = recorder.state_dict()
    steps.take([3.0])
    assert recorder.norms == [1.0, 2.0, 3.0]
    recorder.load_state_dict(state)
    steps.take([4.0])
    assert recorder.norms == [1.0, 2.0, 4.0]
    assert state["waiting"].tolist() == [1.0, 2.0]


def test_another_fit_may_have_another_optimizer():
    recorder = GradientNormRecorder()
    Steps(recorder).take([1.0])
    again = Steps(recorder, torch.optim.SGD)
    recorder.setup(again, None, "fit")
    again.take([1.0])
    assert recorder.state_dict()["norm"] == "l2"


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    recorder = GradientNormRecorder(path=str(tmp_path / "file" / "norms.json"))
    with pytest.warns(UserWarning, match=r"GradientNormRecorder cannot write .*norms.json: "):
        run(make_batches(3), [recorder], epochs=1, default_root_dir=tmp_path)
    assert len(recorder.norms) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"norm": "linf"}, r"`GradientNormRecorder\(norm=...\)` must be 'auto', 'l2' or 'l1', got 'linf'"),
        (
            {"optimizer_index": -1},
            r"`GradientNormRecorder\(optimizer_index=...\)` must be a whole number of at least 0",
        ),
        ({"optimizer_index": True}, "optimizer_index"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        GradientNormRecorder(**arguments)


def test_numbers_of_numpy_will_do():
    assert GradientNormRecorder(optimizer_index=np.int64(1)).optimizer_index == 1


def test_an_optimizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be below 1, the number of optimizers, got 1"):
        run(make_batches(3), [GradientNormRecorder(optimizer_index=1)], epochs=1, default_root_dir=tmp_path)
