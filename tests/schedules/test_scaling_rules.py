# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.schedules.scaling_rules import lamb_lr, lamb_warmup, lion_from_adamw, scale_lr


def reference_lamb_lr(batch):
    return 5e-3 / math.sqrt(2) ** math.log2(32768 / batch)


def decayed(weight, lr, weight_decay, steps):
    for _ in range(steps):
        weight = weight - lr * weight_decay * weight
    return weight


# LAMB


@pytest.mark.parametrize("batch", [1, 300, 512, 1024, 4096, 32768, 65536])
def test_the_learning_rate_of_lamb_is_the_formula_of_the_paper(batch):
    assert lamb_lr(batch) == pytest.approx(reference_lamb_lr(batch), rel=1e-12)


def test_both_rules_of_lamb_give_the_whole_table_of_the_paper():
    table = {
        512: (5 / (2**3.0 * 1e3), 1 / 320),
        1024: (5 / (2**2.5 * 1e3), 1 / 160),
        2048: (5 / (2**2.0 * 1e3), 1 / 80),
        4096: (5 / (2**1.5 * 1e3), 1 / 40),
        8192: (5 / (2**1.0 * 1e3), 1 / 20),
        16384: (5 / (2**0.5 * 1e3), 1 / 10),
        32768: (5 / (2**0.0 * 1e3), 1 / 5),
    }
    for batch, (lr, warmup) in table.items():
        assert lamb_lr(batch) == pytest.approx(lr, rel=1e-12)
        assert lamb_warmup(batch) == pytest.approx(warmup, rel=1e-12)


def test_the_warmup_of_lamb_takes_the_same_number_of_samples_at_every_batch_size():
    samples = 320 * 512 * 10
    assert {round(lamb_warmup(2**k) * samples) for k in range(9)} == {round(2**k * 10) for k in range(9)}
    assert {round(lamb_warmup(2**k) * samples / 2**k) for k in range(9, 16)} == {10}


def test_the_warmup_of_lamb_never_exceeds_a_fifth_of_the_run():
    assert lamb_warmup(32769) == lamb_warmup(10**9) == 0.2


# Lion


@pytest.mark.parametrize("factor", [1, 3.0, 5.0, 10.0])
def test_lion_decays_a_weight_as_adamw_did(factor):
    lr, weight_decay = lion_from_adamw(1e-2, 0.1, factor)
    assert (lr, weight_decay) == pytest.approx((1e-2 / factor, 0.1 * factor), rel=1e-12)
    assert decayed(2.0, lr, weight_decay, 100) == pytest.approx(decayed(2.0, 1e-2, 0.1, 100), rel=1e-12)


def test_a_sign_step_with_the_learning_rate_of_lion_is_a_tenth_as_large():
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    parameter.grad = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.0).step()  # a sign step, as the first of AdamW is
    sign_step = lion_from_adamw(1e-3, 0.0).lr * parameter.grad.sign()
    assert torch.allclose(sign_step * 10, -parameter.detach(), rtol=1e-6)


def test_the_settings_of_lion_have_names_and_no_decay_stays_none():
    settings = lion_from_adamw(lr=3e-4, weight_decay=0.0, factor=3.0)
    assert settings.lr == pytest.approx(1e-4)
    assert settings.weight_decay == 0.0


# Batch sizes


def test_k_small_steps_on_a_constant_gradient_are_one_step_after_linear_scaling():
    gradient, small = 0.7, 0.0
    for _ in range(8):
        small -= 0.1 * gradient
    assert -scale_lr(0.1, 32, 256) * gradient == pytest.approx(small, rel=1e-12)


def test_square_root_scaling_keeps_the_variance_of_an_update():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, 16, generator=generator, dtype=torch.float64)
    small = 0.1 * noise[:, :4].mean(dim=1)
    large = scale_lr(0.1, 4, 16, rule="sqrt") * noise.mean(dim=1)
    assert large.var().item() == pytest.approx(small.var().item(), rel=0.02)


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_scaling_there_and_back_changes_nothing_and_zero_stays_zero(rule):
    assert scale_lr(scale_lr(0.3, 96, 7, rule), 7, 96, rule) == pytest.approx(0.3, rel=1e-12)
    assert scale_lr(0.3, 64, 64, rule) == 0.3
    assert scale_lr(0.0, 1, 64, rule) == 0.0


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lamb_lr(0), r"`lamb_lr\(batch=...\)` must be .*, got 0\."),
        (lambda: lamb_lr(math.nan), r"`lamb_lr\(batch=...\)` must be .*, got nan\."),
        (lambda: lamb_warmup(-8), r"`lamb_warmup\(batch=...\)` must be .*, got -8\."),
        (
            lambda: lion_from_adamw(-1.0, 0.1),
            r"`lion_from_adamw\(lr=...\)` must be .*, got -1\.0\.",
        ),
        (
            lambda: lion_from_adamw(1.0, -0.1),
            r"`lion_from_adamw\(weight_decay=...\)` must be .*, got -0\.1\.",
        ),
        (
            lambda: lion_from_adamw(1.0, 0.1, 0.5),
            r"`lion_from_adamw\(factor=...\)` must be .*, got 0\.5\.",
        ),
        (
            lambda: lion_from_adamw(1.0, 0.1, math.inf),
            r"`lion_from_adamw\(factor=...\)` must be .*, got inf\.",
        ),
        (lambda: scale_lr(-0.1, 1, 1), r"`scale_lr\(lr=...\)` must be .*, got -0\.1\."),
        (lambda: scale_lr(0.1, 0, 1), r"`scale_lr\(from_batch=...\)` must be .*, got 0\."),
        (lambda: scale_lr(0.1, 1, 0), r"`scale_lr\(to_batch=...\)` must be .*, got 0\."),
        (lambda: scale_lr(0.1, 1, 1, "log"), r"`scale_lr\(rule=...\)` must be one of 'linear', 'sqrt', got 'log'\."),
    ],
)
def test_an_argument_out_of_its_bounds_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
