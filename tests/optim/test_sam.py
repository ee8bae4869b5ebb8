# SPDX-License-Identifier: Apache-2.0
import copy
import io
import math

import pytest
import torch
from torch import nn

from lightning_stable.optim.sam import SAM

BASES = {
    "sgd": ("torch.optim.SGD", {"momentum": 0.9}),
    "adamw": ("torch.optim.AdamW", {"betas": [0.8, 0.95]}),
    "spam": ("lightning_stable.optim.SPAM", {"reset_interval": 7, "reset_warmup": 3}),
}


@pytest.fixture(params=BASES.values(), ids=BASES.keys())
def base(request):
    return request.param


class ReferenceSGD:
    def __init__(self, lr, momentum):
        self.lr, self.momentum, self.buffer = lr, momentum, {}

    def move(self, where, weight, gradient):
        old = self.buffer.get(where)
        self.buffer[where] = gradient if old is None else self.momentum * old + gradient
        return weight - self.lr * self.buffer[where]


class ReferenceAdamW:
    def __init__(self, lr, betas, eps=1e-8, weight_decay=0.01):
        self.lr, self.betas, self.eps, self.weight_decay, self.state = lr, betas, eps, weight_decay, {}

    def move(self, where, weight, gradient):
        beta1, beta2 = self.betas
        m, v, t = self.state.get(where, (0.0, 0.0, 0))
        m, v, t = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2, t + 1
        self.state[where] = m, v, t
        weight -= self.lr * self.weight_decay * weight
        return weight - self.lr * m / (1 - beta1**t) / (math.sqrt(v / (1 - beta2**t)) + self.eps)


def reference_sam(weights, gradients_at, base, rho, adaptive=False, eta=0.01):
    """One step on lists of floats, in place; `gradients_at` has `None` where there is no gradient."""
    total, first, uphill = 0.0, gradients_at(weights), [list(weight) for weight in weights]
    for weight, gradient in zip(weights, first, strict=True):
        for w, g in zip(weight, gradient or [], strict=gradient is not None):
            total += ((abs(w) + eta) * g) ** 2 if adaptive else g**2
    for i, gradient in enumerate(first):
        for j, g in enumerate(gradient or []):
            t = abs(weights[i][j]) + eta if adaptive else 1.0
            uphill[i][j] += rho * t**2 * g / math.sqrt(total)
    for i, gradient in enumerate(gradients_at(uphill)):
        for j, g in enumerate(gradient or []):
            weights[i][j] = base.move((i, j), weights[i][j], g)


def mlp_gradients(weights, inputs, targets, without_bias):
    """Of mean((b2 + W2 tanh(W1 x + b1) - y)^2), 2 inputs, 3 hidden units; by hand."""
    w1, b1, w2, b2 = weights
    g1, gb1, g2, gb2 = [0.0] * 6, [0.0] * 3, [0.0] * 3, [0.0]
    for x, y in zip(inputs, targets, strict=True):
        hidden = [math.tanh(w1[2 * k] * x[0] + w1[2 * k + 1] * x[1] + b1[k]) for k in range(3)]
        error = 2 * (b2[0] + sum(w2[k] * hidden[k] for k in range(3)) - y) / len(inputs)
        gb2[0] += error
        for k in range(3):
            g2[k] += error * hidden[k]
            gb1[k] += (inner := error * w2[k] * (1 - hidden[k] ** 2))
            g1[2 * k] += inner * x[0]
            g1[2 * k + 1] += inner * x[1]
    return [g1, None if without_bias else gb1, g2, gb2]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(4, 2, **draw), torch.randn(4, **draw)) for _ in range(count)]


def closure_for(model, optimizer, x, y, after=lambda: None, zero_grad=None):
    def closure():
        (zero_grad or optimizer.zero_grad)()
        loss = (model(x).squeeze(-1) - y).square().mean()
        loss.backward()
        after()
        return loss

    return closure


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(model, optimizer, data):
    for x, y in data:
        optimizer.step(closure_for(model, optimizer, x, y))
    return weights_of(model)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("adaptive", [{}, {"adaptive": True}, {"adaptive": True, "eta": 0.0}], ids=str)
def test_it_matches_the_reference(name, adaptive):
    model, (kind, arguments) = mlp(), BASES[name]
    optimizer = SAM(model.parameters(), kind, lr=0.02, rho=0.2, base_args=arguments, **adaptive)
    reference = ReferenceSGD(0.02, 0.9) if name == "sgd" else ReferenceAdamW(0.02, (0.8, 0.95))
    weights = [parameter.flatten().tolist() for parameter in model.parameters()]
    for step, (x, y) in enumerate(batches(80)):

        def drop(step=step):
            model[0].bias.grad = None if step % 7 == 3 else model[0].bias.grad

        def gradients_at(point, x=x, y=y, step=step):
            return mlp_gradients(point, x.tolist(), y.tolist(), step % 7 == 3)

        optimizer.step(closure_for(model, optimizer, x, y, drop))
        reference_sam(weights, gradients_at, reference, rho=0.2, **adaptive)
        expected = torch.tensor([w for weight in weights for w in weight], dtype=torch.float64)
        torch.testing.assert_close(weights_of(model), expected, rtol=0, atol=1e-12)


def test_on_a_quadratic_it_is_the_closed_form():
    matrix = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = SAM([w], rho=0.3, lr=0.1)

    def closure():
        optimizer.zero_grad()
        (w @ matrix @ w / 2).backward()

    for _ in range(20):
        gradient = matrix @ w.detach()
        expected = w.detach() - 0.1 * matrix @ (w.detach() + 0.3 * gradient / gradient.norm())
        optimizer.step(closure)
        torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-14)


# What the papers claim


def sharpness_after_training(optimizer_for):
    """Largest eigenvalue of the Hessian of (u v - 1)^2 / 2; on its minima, u v = 1, that is u^2 + v^2, at least 2."""
    w = nn.Parameter(torch.tensor([3.0, 0.2], dtype=torch.float64))
    optimizer = optimizer_for([w])

    def loss_at(point):
        return (point[0] * point[1] - 1).square() / 2

    def closure():
        optimizer.zero_grad()
        loss_at(w).backward()

    for _ in range(2000):
        optimizer.step(closure)
    hessian = torch.autograd.functional.hessian(loss_at, w.detach())
    return torch.linalg.eigvalsh(hessian)[-1].item(), loss_at(w).item()


@pytest.mark.parametrize(("adaptive", "bound"), [(False, 2.5), (True, 8.0)], ids=["sam", "asam"])
def test_it_ends_where_the_loss_is_flatter(adaptive, bound):
    plain, plain_loss = sharpness_after_training(lambda params: torch.optim.SGD(params, lr=0.05))
    flat, flat_loss = sharpness_after_training(lambda params: SAM(params, rho=0.1, adaptive=adaptive, lr=0.05))
    assert plain > 8.5
    assert flat < bound
    assert plain_loss < flat_loss < 0.02


def test_adaptive_steps_do_not_depend_on_how_the_weights_are_scaled_against_each_other():
    """ASAM's claim: (a u, v / a) is the same network as (u, v), and has the same perturbed loss."""

    def perturbed_loss(factor, **options):
        u, v = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (2.0 * factor, 0.3 / factor))
        optimizer = SAM([u, v], rho=0.2, **options)
        (u * v - 1).square().backward()
        optimizer.ascend()
        loss = (u * v - 1).square().item()
        optimizer.restore()
        return loss

    assert perturbed_loss(5.0, adaptive=True, eta=0.0) == pytest.approx(perturbed_loss(1.0, adaptive=True, eta=0.0))
    assert perturbed_loss(5.0) > 2 * perturbed_loss(1.0)


# Which parameters are perturbed


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.scale(self.first(x)).tanh()).square().mean()


def perturbation(model, optimizer):
    """Of each parameter that moves, by name."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 15).view(5, 3)).backward()
    optimizer.ascend()
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    optimizer.restore()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    return {name: each for name, each in moved.items() if each.any()}


def test_only_norm_layers_are_perturbed_where_names_tell_them_and_the_norm_is_theirs():
    model = Normed()
    moved = perturbation(model, SAM(model.named_parameters(), perturb="norm", rho=0.25))
    assert set(moved) == {"scale.weight", "scale.bias"}
    assert torch.cat([*moved.values()]).norm().item() == pytest.approx(0.25, rel=1e-4)


def test_without_names_all_parameters_with_fewer_than_two_axes_are():
    model = Normed()
    expected = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert set(perturbation(model, SAM(model.parameters(), perturb="norm"))) == expected


def test_a_role_says_it_and_a_group_s_own_word_is_the_last():
    model = Normed()
    groups = [
        {"params": model.first.parameters(), "role": "matrix"},
        {"params": model.scale.parameters(), "role": "norm"},
        {"params": model.last.parameters(), "role": "head", "perturb": True},
    ]
    optimizer = SAM(groups, perturb="norm")
    assert set(perturbation(model, optimizer)) == {"scale.weight", "scale.bias", "last.weight", "last.bias"}
    optimizer.param_groups[1]["perturb"] = False
    assert set(perturbation(model, optimizer)) == {"last.weight", "last.bias"}


def test_a_group_has_its_own_rho_and_uphill_is_down_where_the_loss_is_maximized():
    u, v = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))
    optimizer = SAM([{"params": [u], "rho": 0.5, "maximize": True}, {"params": [v], "rho": 0.0}])
    (u.square() + v.square()).sum().backward()
    optimizer.ascend()
    assert (u.item(), v.item()) == (2.5, 4.0)
    optimizer.restore()


# One step


def test_weights_are_put_back_bit_for_bit_and_phases_are_told():
    model, (x, y) = mlp().float(), [tensor.float() for tensor in batches(1)[0]]
    optimizer, before, seen = SAM(model.parameters(), rho=3.7, lr=0.0), weights_of(model), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.phase))

    def look():
        seen.append((optimizer.phase, torch.equal(weights_of(model), before)))

    loss = optimizer.step(closure_for(model, optimizer, x, y, look))
    assert seen == [None, ("ascend", True), ("descend", False)]
    assert optimizer.phase is None
    assert torch.equal(weights_of(model), before)
    assert loss.item() == (model(x).squeeze(-1) - y).square().mean().item()
    with pytest.raises(AttributeError):
        optimizer.phase = "ascend"


def test_with_rho_0_it_is_the_base_optimizer_bit_for_bit_dropout_and_all(base):
    def train(wrapped):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
        optimizer = SAM(model.parameters(), base[0], rho=0.0, lr=0.05, base_args=base[1])
        if not wrapped:
            optimizer = type(optimizer.base)(model.parameters(), lr=0.05, **base[1])
        trained(model, optimizer, batches(30))
        return [*model.state_dict().values(), torch.rand(1)]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


@pytest.mark.parametrize("way", ["in place", "by the module", "by the loop", "by hand"])
def test_the_step_is_the_same_however_the_gradients_are_zeroed_and_found(base, way):
    model, twin = mlp(), mlp()
    optimizer, expected = (SAM(each.parameters(), base[0], lr=0.1, base_args=base[1]) for each in (model, twin))
    ways = {"in place": lambda: optimizer.zero_grad(False), "by the module": model.zero_grad, "by the loop": int}
    for step, (x, y) in enumerate(batches(6)):
        closure = closure_for(model, optimizer, x, y, zero_grad=ways.get(way))
        optimizer.zero_grad()
        if way == "by hand":
            closure()
            optimizer.ascend()
            assert optimizer.phase == "descend"
            closure()
            optimizer.step() if step % 2 else optimizer.descend()
            assert optimizer.phase is None
        else:
            optimizer.step(closure)
        assert torch.equal(weights_of(model), trained(twin, expected, [(x, y)]))


# State


def test_a_run_goes_on_bit_for_bit_from_its_middle(base):
    def make(model):
        return SAM(model.parameters(), base[0], adaptive=True, rho=0.4, lr=0.05, base_args=base[1])

    data, model, second = batches(20), mlp(), mlp()
    optimizer, resumed, file = make(model), make(second), io.BytesIO()
    trained(model, optimizer, data[:9])
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second.load_state_dict(weights)
    resumed.load_state_dict(state)
    for twin in (resumed, copy.deepcopy(resumed)):
        assert twin.param_groups is twin.base.param_groups
        assert twin.state is twin.base.state
    assert torch.equal(trained(model, optimizer, data[9:]), trained(second, resumed, data[9:]))


# Gradients out of the ordinary


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e-42])
def test_a_gradient_without_a_direction_perturbs_nothing(value):
    w, other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    optimizer, seen = SAM([w, other], lr=0.1), []

    def closure():
        optimizer.zero_grad()
        seen.append((w.tolist(), other.tolist()))
        w.grad = torch.tensor([value, 0.0] if len(seen) == 1 else [1.0, 1.0])
        other.grad = torch.zeros(1)

    optimizer.step(closure)
    assert seen[1] == ([1.0, 2.0], [3.0])
    assert w.tolist() == pytest.approx([0.9, 1.9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_and_perturbations_of_low_precision_are_computed_in_float32(dtype):
    w = nn.Parameter(torch.full((4096,), 2.0, dtype=dtype))
    optimizer = SAM([w], rho=32.0)
    (w.sum() * 300).backward()  # 300^2 * 4096 is beyond float16
    optimizer.ascend()
    assert torch.equal(w, torch.full_like(w, 2.5))
    optimizer.restore()
    assert torch.equal(w, torch.full_like(w, 2.0))


# Errors


@pytest.mark.parametrize("fails_in", [1, 2])
def test_an_error_in_the_closure_leaves_weights_and_statistics_as_after_the_first_pass(fails_in):
    model, (x, y) = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).double(), batches(1)[0]
    optimizer, states = SAM(model.parameters()), []
    hooks = len(nn.modules.module._global_forward_pre_hooks)

    def fail():
        states.append(copy.deepcopy(model.state_dict()))
        if len(states) == fails_in:
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        optimizer.step(closure_for(model, optimizer, x, y, fail))
    assert all(torch.equal(value, states[0][name]) for name, value in model.state_dict().items())
    assert optimizer.phase is None
    assert len(nn.modules.module._global_forward_pre_hooks) == hooks


def test_ascending_twice_and_descending_from_nowhere_are_refused():
    optimizer = SAM([nn.Parameter(torch.ones(2))])
    with pytest.raises(RuntimeError, match=r"`SAM\.descend\(\)` must come after `ascend\(\)`"):
        optimizer.descend()
    optimizer.ascend()
    with pytest.raises(RuntimeError, match=r"`SAM\.ascend\(\)` must be followed by"):
        optimizer.ascend()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, r"`SAM\(rho=\.\.\.\)` must be at least 0, got -0\.1"),
        ({"eta": float("nan")}, r"`SAM\(eta=\.\.\.\)` must be at least 0, got nan"),
        ({"perturb": "some"}, r"`SAM\(perturb=\.\.\.\)` must be \"all\" or \"norm\".*got 'some'"),
        ({"perturb": "norm"}, r"`SAM\(perturb=\.\.\.\)` must leave at least one .* got 'norm', which fits none"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SAM(nn.Linear(2, 2).named_parameters(), **arguments)
