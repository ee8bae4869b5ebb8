# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch

from lightning_stable.optim import SPAM

STEPS = 70
SHAPES = [(40, 8), (13,), (), (3, 2, 4)]


def gradients(step, shapes=SHAPES, dtype=torch.float64):
    """Gradients with spikes, with missing ones, and with rows that are seldom hit, the same for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found[0] *= (torch.rand(shapes[0][0], 1, generator=generator) < 0.2).double()  # as of an embedding
    if step % 9 == 4:
        found = [gradient * 1000 for gradient in found]
    if step % 5 == 2:
        found[1] = None
    return [None if gradient is None else gradient.to(dtype) for gradient in found]


def parameters(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(7)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes
    ]


def run(optimizer, steps):
    for step in steps:
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]


def spam_by_hand(
    values, steps, lr, betas, eps, weight_decay, spike_threshold, clip_after, reset_interval, reset_warmup, restart=True
):
    """The equations, entry by entry. `values` are lists of numbers; returns where they end."""
    beta1, beta2 = betas
    values = [list(entries) for entries in values]
    m = [[0.0] * len(entries) for entries in values]
    v = [[0.0] * len(entries) for entries in values]
    s = [0] * len(values)
    for t in range(1, steps + 1):
        k = t % reset_interval
        scale = 1.0
        if t >= reset_interval and k < reset_warmup:
            scale = 1 - 0.99 * (1 + math.cos(math.pi * k / (reset_warmup + 1))) / 2
        for i, gradient in enumerate(gradients(t)):
            if k == 0:
                m[i], v[i] = [0.0] * len(m[i]), [0.0] * len(v[i])
                if restart:
                    s[i] = 0
            if gradient is None:
                continue
            s[i] += 1
            correction1, correction2 = 1 - beta1 ** s[i], 1 - beta2 ** s[i]
            for j, g in enumerate(gradient.flatten().tolist()):
                clipping = spike_threshold > 0 and t >= clip_after and k >= clip_after
                if clipping and v[i][j] > 0 and g * g > spike_threshold * v[i][j]:
                    g = math.copysign(math.sqrt(spike_threshold * v[i][j]), g)
                values[i][j] -= lr * weight_decay * values[i][j]
                m[i][j] = beta1 * m[i][j] + (1 - beta1) * g
                v[i][j] = beta2 * v[i][j] + (1 - beta2) * g * g
                step_size = lr * scale * math.sqrt(correction2) / correction1
                values[i][j] -= step_size * m[i][j] / (math.sqrt(v[i][j]) + eps)
    return values


SETTINGS = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "spike_threshold": 20.0,
    "clip_after": 4,
    "reset_interval": 20,
    "reset_warmup": 6,
}


@pytest.mark.parametrize("restart", [True, False])
def test_it_follows_its_equations_through_spikes_resets_missing_gradients_and_sparse_rows(restart):
    start = parameters()
    by_hand = spam_by_hand([p.flatten().tolist() for p in start], STEPS, **SETTINGS, restart=restart)
    moved = run(SPAM(start, **SETTINGS, restart_bias_correction=restart), range(1, STEPS + 1))
    for ours, expected in zip(moved, by_hand, strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_without_clipping_and_resets_it_is_adamw():
    ours, theirs = parameters(), parameters()
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    moved = run(SPAM(ours, spike_threshold=0, reset_interval=None, eps=1e-30, **settings), range(STEPS))
    expected = run(torch.optim.AdamW(theirs, eps=1e-30, **settings), range(STEPS))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


# What the paper promises


def after_a_spike(optimizer_class, steps_after, **settings):
    """The second moment, and an update in units of lr, some steps after one gradient 1000 times too large."""
    parameter = torch.nn.Parameter(torch.zeros(100, dtype=torch.float64))
    optimizer = optimizer_class([parameter], lr=1e-3, **settings)
    generator = torch.Generator().manual_seed(0)
    for step in range(200 + steps_after):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(100, generator=generator, dtype=torch.float64) * (1000 if step == 100 else 1)
        optimizer.step()
    moved = (parameter.detach() - before).abs().mean().item() / 1e-3
    return optimizer.state[parameter]["exp_avg_sq"].mean().item(), moved


def test_one_huge_gradient_inflates_the_second_moment_of_adam_for_long_and_that_of_spam_hardly():
    adam, adam_moves = after_a_spike(torch.optim.AdamW, steps_after=300)
    spam, spam_moves = after_a_spike(SPAM, steps_after=300, reset_interval=None)
    assert adam > 700  # 400 steps after the spike; a run without it is at 0.4
    assert spam < 0.8
    assert adam_moves < 0.03
    assert spam_moves > 0.1


def test_the_update_at_a_spike_is_not_larger_than_a_few_learning_rates():
    parameter = torch.nn.Parameter(torch.zeros(100, dtype=torch.float64))
    optimizer = SPAM([parameter], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(100):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(100, generator=generator, dtype=torch.float64) * (1e6 if step == 99 else 1)
        optimizer.step()
    assert (parameter.detach() - before).abs().max() < 4e-3


# What the official code gets wrong


def test_rows_without_a_gradient_in_their_first_steps_are_not_frozen():
    parameter = torch.nn.Parameter(torch.zeros(2, 1))
    optimizer = SPAM([parameter], lr=1e-2, clip_after=2, reset_interval=None)
    for step in range(40):
        parameter.grad = torch.tensor([[1.0], [1.0 if step >= 20 else 0.0]])
        optimizer.step()
    assert parameter[1].item() < -0.05


@pytest.mark.parametrize(("restart", "size"), [(True, 1.0), (False, 1.98)])
def test_the_first_update_after_a_reset_is_one_learning_rate(restart, size):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    options = {"reset_warmup": 0, "spike_threshold": 0, "restart_bias_correction": restart}
    optimizer = SPAM([parameter], lr=1.0, reset_interval=500, **options)
    for _ in range(500):
        before = parameter.item()
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert before - parameter.item() == pytest.approx(size, abs=1e-2)  # False is what the official code does


def test_weight_decay_reaches_sparse_momentum():
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.zeros(8, 8)
    SPAM([parameter], lr=0.1, weight_decay=0.5, density=0.25).step()
    assert (parameter == 0.95).sum() == 16
    assert (parameter == 1.0).sum() == 48


def test_masks_are_the_same_on_replicas_whose_random_generators_differ():
    ends = []
    for rank in range(2):
        torch.manual_seed(rank)
        torch.rand(3)
        ends.append(run(SPAM(parameters(), density=0.25, reset_interval=10, reset_warmup=2), range(1, 35)))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_masks_change_at_each_reset_and_always_hold_the_same_number_of_entries():
    parameter = torch.nn.Parameter(torch.zeros(20, 10))
    optimizer = SPAM([parameter], lr=1.0, density=0.3, reset_interval=5, reset_warmup=0)
    masks = []
    for _ in range(15):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(20, 10)
        optimizer.step()
        masks.append(parameter.detach() != before)
        assert masks[-1].sum() == 60
        assert optimizer.state[parameter]["exp_avg"].shape == (60,)
    assert torch.equal(masks[0], masks[3])  # steps 1 to 4
    assert torch.equal(masks[4], masks[8])  # the reset's own step, 5, to 9
    assert not torch.equal(masks[3], masks[4])
    assert not torch.equal(masks[8], masks[9])


def test_gradients_are_left_as_they_were_also_under_clipping_and_sparse_momentum():
    for density in (1.0, 0.5):
        start = parameters()
        optimizer = SPAM(start, spike_threshold=0.5, clip_after=0, density=density)
        run(optimizer, range(1, 4))
        kept = gradients(3)
        assert all(
            parameter.grad is None if expected is None else torch.equal(parameter.grad, expected)
            for parameter, expected in zip(start, kept, strict=True)
        )


def test_a_closure_has_gradients_enabled():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = SPAM([parameter], lr=0.1)

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert parameter.item() == pytest.approx(0.9, abs=1e-5)


def test_second_moments_of_bfloat16_parameters_do_not_stand_still():
    moments = {}
    for moment_dtype in ("float32", "parameter"):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        optimizer = SPAM([parameter], moment_dtype=moment_dtype, reset_interval=None)
        for _ in range(1000):
            parameter.grad = torch.ones(1, dtype=torch.bfloat16)
            optimizer.step()
        moments[moment_dtype] = optimizer.state[parameter]["exp_avg_sq"].item()
    assert moments["float32"] == pytest.approx(1 - 0.999**1000, rel=1e-4)
    assert moments["parameter"] == 0.25  # where one step of 0.00075 is less than half of what bfloat16 can tell apart


def test_one_dimensional_parameters_may_have_a_density():
    parameter = torch.nn.Parameter(torch.ones(4))
    parameter.grad = torch.ones(4)
    SPAM([parameter], lr=0.1, density=0.5).step()
    assert (parameter < 1).all()


def test_a_nan_reaches_neither_parameters_nor_moments():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = SPAM([parameter], lr=0.1, clip_after=0)
    for gradient in ([1.0, 1.0, 1.0], [torch.nan, torch.inf, 1.0], [1.0, 1.0, 1.0]):
        before = parameter.detach().clone()
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        if not math.isfinite(sum(gradient)):
            assert parameter[0] == before[0]  # NaN: left out
            assert parameter[1] < before[1]  # infinity: clipped at sqrt(threshold v)
    assert parameter.isfinite().all()
    assert all(value.isfinite().all() for value in optimizer.state[parameter].values())


# Resume


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("stop", [13, 20, 23])
def test_a_resume_in_the_warmup_after_a_reset_is_bit_identical(density, stop, tmp_path):
    settings = {**SETTINGS, "density": density}
    expected = run(SPAM(parameters(), **settings), range(1, 50))
    first = SPAM(parameters(), **settings)
    run(first, range(1, stop))
    torch.save((first.state_dict(), first.param_groups[0]["params"]), tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    second = SPAM(values, **settings)
    second.load_state_dict(state)
    resumed = run(second, range(stop, 50))
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected, strict=True))


def test_a_group_added_later_joins_the_count():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = SPAM([first], reset_interval=10, reset_warmup=0)
    for step in range(1, 21):
        if step == 5:
            optimizer.add_param_group({"params": [second], "lr": 1e-2})
        first.grad, second.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
    assert [group["steps_taken"] for group in optimizer.param_groups] == [20, 20]
    assert optimizer.state[first]["step"] == optimizer.state[second]["step"] == 1


def test_a_parameter_without_a_gradient_at_the_reset_is_reset_too():
    parameter, other = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = SPAM([parameter, other], reset_interval=4)
    for step in range(1, 5):
        parameter.grad = torch.ones(1) if step < 4 else None
        other.grad = torch.ones(1)
        optimizer.step()
    assert optimizer.state[parameter]["exp_avg_sq"] == 0
    assert optimizer.state[parameter]["step"] == 0


def test_memory_is_eight_bytes_times_density():
    for density in (1.0, 0.25):
        parameter = torch.nn.Parameter(torch.zeros(100, 100))
        optimizer = SPAM([parameter], density=density)
        parameter.grad = torch.ones(100, 100)
        optimizer.step()
        held = sum(value.numel() * value.element_size() for value in optimizer.state[parameter].values())
        assert held == 8 * density * 10_000 + 4


def test_sparse_momentum_trains_parameters_that_are_not_contiguous_and_of_bfloat16():
    for parameter in (
        torch.nn.Parameter(torch.ones(6, 4).t()),
        torch.nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16)),
    ):
        parameter.grad = torch.ones_like(parameter)
        SPAM([parameter], lr=0.5, density=0.5).step()
        assert (parameter < 0.75).sum() == 12


def test_a_large_tensor_is_the_same_in_one_piece_and_in_chunks(monkeypatch):
    ends = []
    for chunk in (2**18, 16):
        monkeypatch.setattr("lightning_stable.optim.chunks.CHUNK", chunk)
        monkeypatch.setattr("lightning_stable.optim.spam.CHUNK", chunk)
        ends.append([run(SPAM(parameters(), **SETTINGS, density=d), range(1, 30)) for d in (1.0, 0.3)])
    for whole, pieces in zip(*ends, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"density": 0.0}, r"`SPAM\(density=...\)` must be above 0 and at most 1, got 0.0"),
        ({"density": 1.5}, r"`SPAM\(density=...\)` must be above 0 and at most 1, got 1.5"),
        ({"reset_interval": 0}, r"`SPAM\(reset_interval=...\)` must be at least 1, got 0"),
        ({"reset_warmup": -1}, r"`SPAM\(reset_warmup=...\)` must be at least 0, got -1"),
        ({"clip_after": -1}, r"`SPAM\(clip_after=...\)` must be at least 0, got -1"),
        ({"spike_threshold": -1.0}, r"`SPAM\(spike_threshold=...\)` must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        SPAM(parameters(), **argument)
    with pytest.raises(ValueError, match=message):
        SPAM([{"params": parameters(), **argument}])


def test_a_refused_group_is_not_kept():
    optimizer = SPAM(parameters())
    with pytest.raises(ValueError, match="density"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "density": 2.0})
    assert len(optimizer.param_groups) == 1


def test_a_deep_copy_goes_its_own_way():
    optimizer = SPAM(parameters(), **SETTINGS)
    run(optimizer, range(1, 10))
    twin = copy.deepcopy(optimizer)
    expected = run(twin, range(10, 30))
    assert all(torch.equal(a, b) for a, b in zip(run(optimizer, range(10, 30)), expected, strict=True))
