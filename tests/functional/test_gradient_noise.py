# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import GradientNoise, gradient_noise, noise_from_sums, required_batch


def micro_batches(mean, deviation, count, samples, seed=0):
    """Mean gradients of `count` micro-batches of Gaussian sample gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, samples, len(mean))
    return (mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)).mean(1)


def isotropic(entries, norm, total_variance):
    """A mean of that norm, and the deviation of each entry."""
    mean = torch.zeros(entries, dtype=torch.float64)
    mean[: entries // 2] = norm / math.sqrt(entries // 2)
    return mean, torch.full((entries,), math.sqrt(total_variance / entries), dtype=torch.float64)


def averaged(draws):
    return GradientNoise(*(sum(numbers) / len(numbers) for numbers in zip(*draws, strict=True)))


def test_it_follows_its_equations_one_entry_at_a_time():
    gradients = micro_batches(*isotropic(6, 1.0, 4.0), count=5, samples=3).tolist()
    m, b = 5, 3
    mean = [sum(row[i] for row in gradients) / m for i in range(6)]
    norm = math.sqrt(sum(x * x for x in mean))
    direction = [x / norm for x in mean]
    variance = b / (m - 1) * sum((row[i] - mean[i]) ** 2 for row in gradients for i in range(6))
    along = b / (m - 1) * sum(sum(direction[i] * (row[i] - mean[i]) for i in range(6)) ** 2 for row in gradients)
    noise = gradient_noise(torch.tensor(gradients, dtype=torch.float64), samples=b)
    assert noise == pytest.approx((variance, along, norm**2 - variance / (m * b)), rel=1e-12)
    assert noise.scale == pytest.approx(variance / (norm**2 - variance / (m * b)), rel=1e-12)


def test_eight_micro_batches_are_without_bias_and_the_squared_mean_gradient_is_not():
    mean, deviation = isotropic(10, norm=1.0, total_variance=64.0)  # as much noise as signal at 64 samples
    draws = [micro_batches(mean, deviation, count=8, samples=4, seed=seed) for seed in range(3000)]
    noise = averaged([gradient_noise(draw, samples=4) for draw in draws])
    naive = sum(float(draw.mean(0).square().sum()) for draw in draws) / len(draws)
    assert noise.variance == pytest.approx(64.0, rel=0.02)
    assert noise.mean_square == pytest.approx(1.0, rel=0.06)
    assert naive == pytest.approx(3.0, rel=0.06)  # 1 + 64 / 32
    assert required_batch(noise, eta=0.5) == pytest.approx(64 / 0.25, rel=0.1)
    assert 64 / naive / 0.25 < 0.4 * 64 / 0.25  # the batch it would ask for


@pytest.mark.parametrize(("norm", "total_variance", "eta"), [(1.0, 16.0, 0.1), (0.2, 1.0, 0.3), (3.0, 400.0, 0.5)])
@pytest.mark.parametrize(("count", "samples"), [(2, 16), (8, 4), (16, 32)])
def test_the_norm_test_predicts_the_batch_of_theory(norm, total_variance, eta, count, samples):
    mean, deviation = isotropic(200, norm, total_variance)
    draws = [gradient_noise(micro_batches(mean, deviation, count, samples, seed), samples) for seed in range(300)]
    theory = total_variance / (eta**2 * norm**2)
    assert required_batch(averaged(draws), "norm", eta=eta) == pytest.approx(theory, rel=0.1)


def test_the_other_tests_look_along_the_gradient_and_across():
    mean, deviation = torch.zeros(50, dtype=torch.float64), torch.full((50,), 0.5, dtype=torch.float64)
    mean[0], deviation[0] = 2.0, 3.0  # the noise is strongest along the gradient
    draws = [gradient_noise(micro_batches(mean, deviation, 16, 32, seed), 32) for seed in range(300)]
    noise, across = averaged(draws), 49 * 0.25
    assert noise.along == pytest.approx(9.0, rel=0.05)
    assert required_batch(noise, "inner_product", theta=0.2) == pytest.approx(9 / (0.04 * 4), rel=0.1)
    assert required_batch(noise, "orthogonality", theta=10.0, nu=0.2) == pytest.approx(across / (0.04 * 4), rel=0.1)
    assert required_batch(noise, "orthogonality", theta=0.1, nu=0.2) == required_batch(
        noise, "inner_product", theta=0.1
    )
    assert required_batch(noise, "norm", eta=0.2) == pytest.approx((9 + across) / (0.04 * 4), rel=0.1)


def test_sums_say_the_same_as_gradients_and_parts_the_same_on_average():
    mean, deviation = isotropic(20, 1.0, 30.0)
    single, in_parts = [], []
    for seed in range(400):
        gradients = micro_batches(mean, deviation, 6, 4, seed)
        gbar = gradients.mean(0)
        square = float(gbar.square().sum())
        direction = gbar / math.sqrt(square)
        parts = [(gradients[:1].mean(0), 1), (gradients[1:3].mean(0), 2), (gradients[3:].mean(0), 3)]
        along = sum(size * float(direction @ part) ** 2 for part, size in parts)
        in_parts.append(noise_from_sums(4, 6, float(gradients.square().sum()), square, 3, along))
        single.append(gradient_noise(gradients, 4))
    assert [noise.variance for noise in single] == pytest.approx([noise.variance for noise in in_parts], rel=1e-10)
    assert [noise.mean_square for noise in single] == pytest.approx(
        [noise.mean_square for noise in in_parts], abs=1e-10
    )
    assert averaged(in_parts).along == pytest.approx(averaged(single).along, rel=0.1)


def test_without_noise_any_batch_will_do_and_without_a_signal_none():
    same = gradient_noise(torch.ones(4, 3), samples=2)
    assert (same.variance, same.along, same.mean_square) == (0.0, 0.0, 3.0)
    assert [required_batch(same, test) for test in ("norm", "inner_product", "orthogonality")] == [0.0, 0.0, 0.0]
    opposite = gradient_noise(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), samples=2)
    assert opposite.mean_square < 0
    assert opposite.along == 0.0  # there is no direction
    assert required_batch(opposite) == opposite.scale == math.inf
    assert required_batch(gradient_noise(torch.zeros(2, 3), samples=1)) == 0.0


def test_nan_stays_nan():
    noise = gradient_noise(torch.tensor([[1.0, math.nan], [1.0, 1.0]]), samples=2)
    assert all(math.isnan(number) for number in noise)
    assert all(math.isnan(required_batch(noise, test)) for test in ("norm", "inner_product"))
    assert math.isnan(required_batch(GradientNoise(math.nan, 0.0, -1.0)))
    assert not math.isfinite(gradient_noise(torch.tensor([[math.inf], [1.0]]), samples=2).variance)


def test_low_precision_and_views_are_taken_as_the_numbers_they_hold():
    gradients = micro_batches(*isotropic(8, 1.0, 4.0), count=4, samples=2).to(torch.bfloat16)
    expected = gradient_noise(gradients.to(torch.float64), 2)
    assert gradient_noise(gradients, 2) == expected
    assert gradient_noise(gradients.T.contiguous().T, 2) == expected
    assert gradient_noise(torch.zeros(2, 0), 1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_noise(torch.ones(1, 3), 2), r"`gradient_noise\(gradients=...\)` must have at least 2 rows"),
        (lambda: gradient_noise(torch.ones(3), 2), r"got the shape \(3,\)"),
        (lambda: gradient_noise(torch.ones(2, 3), 0), r"`gradient_noise\(samples=...\)` must be at least 1, got 0"),
        (lambda: noise_from_sums(1, 1, 1.0, 1.0), r"`noise_from_sums\(count=...\)` must be at least 2"),
        (lambda: required_batch(GradientNoise(1, 1, 1), eta=0.0), r"`required_batch\(eta=...\)` must be above 0"),
        (lambda: required_batch(GradientNoise(1, 1, 1), theta=math.nan), r"\(theta=...\)` must be above 0"),
        (lambda: required_batch(GradientNoise(1, 1, 1), "norms"), "got 'norms'"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
