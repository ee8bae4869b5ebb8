# SPDX-License-Identifier: Apache-2.0
import copy
import gc
import pickle
import weakref

import pytest
import torch

from lightning_stable.optim import StepGate

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "fused_adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "tensor_lr_adamw": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1), foreach=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, momentum=0.9),
}


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def make(request):
    return request.param


def setting(make):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return parameter, make([parameter])


def step(optimizer, gradient, scaler=None):
    parameter = optimizer.param_groups[0]["params"][0]
    optimizer.zero_grad()
    loss = (parameter * gradient).sum()
    if scaler is None:
        loss.backward()
        return optimizer.step()
    scaler.scale(loss).backward()
    result = scaler.step(optimizer)
    scaler.update()
    return result


def frozen(parameter, optimizer):
    return copy.deepcopy((parameter.detach(), optimizer.state_dict()))


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaler"])
def test_a_vetoed_step_moves_nothing(make, scaled):
    parameter, optimizer = setting(make)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    gate = StepGate.attach(optimizer, user="test")
    for value in (1.0, 2.0):
        step(optimizer, torch.full((3,), value), scaler)
    before = frozen(parameter, optimizer)
    gate.veto = True
    step(optimizer, torch.full((3,), 100.0), scaler)
    assert equal(frozen(parameter, optimizer), before)
    assert (gate.steps_taken, gate.steps_vetoed) == (2, 1)
    gate.veto = False
    step(optimizer, torch.full((3,), 1.0), scaler)
    assert not torch.equal(parameter, before[0])


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaler"])
def test_a_run_with_a_vetoed_step_equals_one_that_never_had_it(make, scaled):
    def run(values):
        parameter, optimizer = setting(make)
        scaler = torch.amp.GradScaler("cpu") if scaled else None
        gate = StepGate.attach(optimizer, user="test")
        for value in values:
            gate.veto = value > 50
            step(optimizer, torch.full((3,), value), scaler)
        return frozen(parameter, optimizer)

    assert equal(run([1.0, 99.0, 2.0, 99.0, 3.0]), run([1.0, 2.0, 3.0]))


def test_an_open_gate_changes_nothing(make):
    (gated, gated_optimizer), (free, free_optimizer) = setting(make), setting(make)
    StepGate.attach(gated_optimizer, user="test")
    for value in (1.0, -2.0, 3.0):
        step(gated_optimizer, torch.full((3,), value))
        step(free_optimizer, torch.full((3,), value))
    assert equal(frozen(gated, gated_optimizer), frozen(free, free_optimizer))


@pytest.mark.parametrize("before", [True, False], ids=["scheduler_first", "gate_first"])
def test_a_scale_is_the_schedule_s_rate_times_the_scale(make, before):
    def one_cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)

    (gated, gated_optimizer), (free, free_optimizer) = setting(make), setting(make)
    schedulers = [one_cycle(free_optimizer)]
    if before:
        schedulers.append(one_cycle(gated_optimizer))
    gate = StepGate.attach(gated_optimizer, user="test")
    if not before:
        schedulers.append(one_cycle(gated_optimizer))
    gate.scales["test"] = 0.3
    for _ in range(8):
        step(gated_optimizer, torch.ones(3))
        rate = free_optimizer.param_groups[0]["lr"]
        assert float(gated_optimizer.param_groups[0]["lr"]) == float(rate)
        kept = rate.clone() if isinstance(rate, torch.Tensor) else rate
        free_optimizer.param_groups[0]["lr"] = kept * 0.3
        step(free_optimizer, torch.ones(3))
        free_optimizer.param_groups[0]["lr"] = kept
        for scheduler in schedulers:
            scheduler.step()
    assert torch.equal(gated, free)


def test_a_tensor_rate_stays_the_same_tensor():
    _, optimizer = setting(OPTIMIZERS["tensor_lr_adamw"])
    held = optimizer.param_groups[0]["lr"]
    StepGate.attach(optimizer, user="test").scales["test"] = 0.3
    step(optimizer, torch.ones(3))
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == torch.tensor(0.1).item()


def test_the_rate_is_restored_when_the_step_raises():
    _parameter, optimizer = setting(OPTIMIZERS["sgd"])
    StepGate.attach(optimizer, user="test").scales["test"] = 0.5

    def fail(*_):
        raise RuntimeError("on purpose")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        step(optimizer, torch.ones(3))
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("gate_first", [True, False])
def test_a_veto_before_the_first_scheduler_step_raises_no_warning(gate_first):
    _, optimizer = setting(OPTIMIZERS["adamw"])
    if gate_first:
        gate = StepGate.attach(optimizer, user="test")
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    if not gate_first:
        gate = StepGate.attach(optimizer, user="test")
    gate.veto = True
    step(optimizer, torch.ones(3))
    scheduler.step()


def test_detaching_restores_the_step_as_it_was():
    _, optimizer = setting(OPTIMIZERS["adamw"])
    plain = set(vars(optimizer))
    gate = StepGate.attach(optimizer, user="test")
    gate.detach(user="test")
    assert set(vars(optimizer)) == plain
    torch.optim.lr_scheduler.LinearLR(optimizer)
    wrapped_by_scheduler = optimizer.step
    StepGate.attach(optimizer, user="test").detach(user="test")
    assert optimizer.step is wrapped_by_scheduler


def test_detaching_below_a_scheduler_leaves_the_scheduler_s_wrapper_and_no_effect():
    parameter, optimizer = setting(OPTIMIZERS["sgd"])
    gate = StepGate.attach(optimizer, user="test")
    gate.veto = True
    gate.scales["test"] = 0.5
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5)
    gate.detach(user="test")
    step(optimizer, torch.ones(3))
    assert parameter[0].item() == pytest.approx(1.0 - 0.05)
    scheduler.step()
    again = StepGate.attach(optimizer, user="test")
    assert again is not gate
    again.veto = True
    before = frozen(parameter, optimizer)
    step(optimizer, torch.ones(3))
    assert equal(frozen(parameter, optimizer), before)


def test_users_share_a_gate_and_the_last_one_to_go_removes_it():
    _, optimizer = setting(OPTIMIZERS["sgd"])
    first = StepGate.attach(optimizer, user="first")
    assert StepGate.attach(optimizer, user="second") is first
    first.scales.update(first=0.5, second=0.5)
    assert first.scale == 0.25
    first.detach(user="first")
    assert first.scale == 0.5
    assert "step" in vars(optimizer)
    first.detach(user="second")
    first.detach(user="second")
    assert "step" not in vars(optimizer)


def test_the_functions_before_a_step_see_every_step_that_is_taken_and_no_other():
    _, optimizer = setting(OPTIMIZERS["sgd"])
    gate = StepGate.attach(optimizer, user="test")
    seen = []

    def before_step():
        seen.append(len(seen))
        gate.scales["test"] = 0.5

    gate.before_step["test"] = before_step
    for veto in (False, True, False):
        gate.veto = veto
        step(optimizer, torch.ones(3))
    assert seen == [0, 1]
    gate.detach(user="test")
    step(optimizer, torch.ones(3))
    assert seen == [0, 1]


def test_a_function_before_the_step_sets_the_scale_of_that_very_step():
    parameter, optimizer = setting(OPTIMIZERS["sgd"])
    gate = StepGate.attach(optimizer, user="test")
    gate.before_step["test"] = lambda: gate.scales.update(test=0.5)
    step(optimizer, torch.ones(3))
    assert parameter[0].item() == pytest.approx(0.95)


@pytest.mark.parametrize("name", ["adamw", "fused_adamw"])
def test_a_step_that_the_scaler_skips_is_not_announced(name):
    parameter, optimizer = setting(OPTIMIZERS[name])
    scaler = torch.amp.GradScaler("cpu")
    gate = StepGate.attach(optimizer, user="test")
    seen = []
    gate.before_step["test"] = lambda: seen.append(1)
    before = parameter.detach().clone()
    step(optimizer, torch.full((3,), float("inf")), scaler)
    assert torch.equal(parameter, before)
    assert not seen
    step(optimizer, torch.ones(3), scaler)
    assert len(seen) == 1


def test_the_closure_runs_with_gradients_also_when_the_step_is_vetoed_and_its_loss_is_returned():
    parameter, optimizer = setting(OPTIMIZERS["sgd"])
    gate = StepGate.attach(optimizer, user="test")

    def closure():
        optimizer.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    for veto in (False, True):
        gate.veto = veto
        with torch.no_grad():
            loss = optimizer.step(closure=closure)
        assert loss.requires_grad
        assert torch.equal(parameter.grad, torch.ones(3))


def test_what_an_optimizer_returns_without_a_closure_is_handed_through():
    class Talkative(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            return "done"

    _, optimizer = setting(lambda parameters: Talkative(parameters, lr=0.1))
    StepGate.attach(optimizer, user="test")
    assert step(optimizer, torch.ones(3)) == "done"


def test_lbfgs_passes_through_with_its_closure_called_as_often_as_without_a_gate():
    def run(gated):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(3))
        optimizer = torch.optim.LBFGS([parameter], lr=0.5)
        if gated:
            StepGate.attach(optimizer, user="test").veto = True
        calls = []

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = (parameter**4).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return parameter.detach(), len(calls)

    (gated, gated_calls), (free, free_calls) = run(True), run(False)
    assert torch.equal(gated, free)
    assert gated_calls == free_calls > 1


def test_the_optimizer_pickles_and_copies_without_its_gate_and_no_state_dict_holds_it():
    _parameter, optimizer = setting(OPTIMIZERS["adamw"])
    without = copy.deepcopy(optimizer.state_dict())
    gate = StepGate.attach(optimizer, user="test")
    gate.veto = True
    assert equal(optimizer.state_dict(), without)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "step" not in vars(twin)
        before = twin.param_groups[0]["params"][0].detach().clone()
        step(twin, torch.ones(3))
        assert not torch.equal(twin.param_groups[0]["params"][0], before)


def test_a_gated_optimizer_is_garbage_like_any_other():
    _, optimizer = setting(OPTIMIZERS["adamw"])
    StepGate.attach(optimizer, user="test")
    alive = weakref.ref(optimizer)
    del optimizer, _
    gc.collect()
    assert alive() is None


def test_marking_the_step_as_called_keeps_schedulers_from_warning_when_a_scaler_skipped_it():
    _, optimizer = setting(OPTIMIZERS["adamw"])
    gate = StepGate.attach(optimizer, user="test")
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    gate.mark_called()
    scheduler.step()
