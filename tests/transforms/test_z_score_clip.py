# SPDX-License-Identifier: Apache-2.0
import math
import statistics

import pytest
import torch

from lightning_stable.transforms.z_score_clip import ZScoreClip


def stream(length=90, seed=0):
    """Norms around 2: with spikes, one of them in the warm-up, a zero, NaN and infinity."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (2 + 0.3 * torch.randn(length, generator=generator, dtype=torch.float64)).abs().tolist()
    odd = {5: 40.0, 11: math.nan, 33: 12.0, 41: 0.0, 50: math.inf, 51: math.nan, 60: 2e4, 61: 3.5, 75: 2.9}
    return [odd.get(step, norm) for step, norm in enumerate(drawn)]


def let_through(transform, norms, dtype=torch.float64):
    """The norms after the transform; of two tensors, that hold 0.6 and 0.8 of them."""
    parameters = [torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2)]
    found = []
    for norm in norms:
        for parameter, share in zip(parameters, (0.6, -0.8), strict=True):
            parameter.grad = torch.full_like(parameter, share * norm)
        transform.transform(parameters)
        found.append(math.hypot(*(parameter.grad.item() for parameter in parameters)))
    return found


def reference_z_clip(norms, alpha, z, warmup_steps, max_norm, min_std):
    result, warmup, mean, variance = [], [], 0.0, 0.0
    for norm in norms:
        if not math.isfinite(norm) or norm == 0:
            result.append(norm)
            continue
        kept = norm
        if len(warmup) == warmup_steps:
            std = max(math.sqrt(variance), min_std * mean)
            if norm > mean + z * std:
                score = (norm - mean) / std
                kept = mean + z * std / (score / z)
        kept = min(kept, max_norm or math.inf)
        result.append(kept)
        if len(warmup) < warmup_steps:
            warmup.append(kept)
            mean = statistics.median(warmup)
            variance = (1.4826 * statistics.median(abs(value - mean) for value in warmup)) ** 2
        else:
            mean = alpha * mean + (1 - alpha) * kept
            variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
    return result


@pytest.mark.parametrize(
    "given",
    [{}, {"alpha": 0.8}, {"z": 1.5}, {"warmup_steps": 4}, {"max_norm": 1.9}, {"min_std": 0.2}, {"min_std": 0.0}],
    ids=str,
)
def test_it_follows_its_equations(given):
    arguments = {"alpha": 0.97, "z": 2.5, "warmup_steps": 25, "max_norm": None, "min_std": 0.01, **given}
    found, expected = let_through(ZScoreClip(**given), stream()), reference_z_clip(stream(), **arguments)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert sum(one < other for one, other in zip(expected, stream(), strict=True)) >= 2


def test_the_further_a_norm_stands_out_the_nearer_to_the_mean_it_is_brought():
    results = []
    for spike in (4.0, 6.0, 20.0, 1e4):
        transform = ZScoreClip()
        let_through(transform, stream()[12:33] * 2)
        mean = transform.state_dict()["mean"].item()
        results.append(let_through(transform, [spike])[0])
        assert mean < results[-1] < 3.0
        assert transform.clip_rate.item() == 1.0
    assert results == sorted(results, reverse=True)
    assert results[-1] == pytest.approx(mean, rel=1e-3)


def test_healthy_norms_pass_almost_always_and_keep_every_bit():
    generator = torch.Generator().manual_seed(1)
    healthy = (2 + 0.3 * torch.randn(1000, generator=generator, dtype=torch.float64)).tolist()
    found = let_through(ZScoreClip(z=4.0), healthy)
    assert sum(one < other * (1 - 1e-9) for one, other in zip(found, healthy, strict=True)) < 5


# What was wrong with the official code, by the numbers of the review


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_z1_a_norm_that_is_not_finite_does_not_end_clipping(bad):
    transform = ZScoreClip()
    let_through(transform, [*stream()[12:33], *stream()[12:33], bad])
    assert let_through(transform, [1e4])[0] < 3.0
    assert all(value.isfinite().all() for value in transform.state_dict().values())


def test_z2_an_infinite_norm_does_not_turn_finite_gradients_into_nan():
    parameters, transform = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)], ZScoreClip(max_norm=1.0)
    parameters[0].grad, parameters[1].grad = torch.tensor([5.0, 1.0]), torch.tensor([torch.inf, 2.0])
    transform.transform(parameters)
    assert parameters[0].grad.tolist() == [5.0, 1.0]
    assert parameters[1].grad.tolist() == [math.inf, 2.0]


def test_z3_a_spike_in_the_warmup_does_not_let_later_ones_through():
    """With mean and variance, a spike of 20 times the norm lets one of 6 times pass."""
    norms = [2.0 + 0.1 * math.sin(step) for step in range(40)]
    norms[5], norms[39] = 40.0, 12.0
    assert let_through(ZScoreClip(), norms)[39] < 2.5


def test_z4_nothing_is_clipped_below_the_running_mean():
    transform = ZScoreClip(z=0.5)
    for norm in stream(400):
        mean, step = transform.state_dict()["mean"].item(), transform.state_dict()["step"].item()
        found = let_through(transform, [norm])[0]
        assert not (step >= 25 and transform.clip_rate.item() and found < mean * (1 - 1e-12))


def test_z5_a_tiny_rise_after_constant_norms_is_no_spike():
    found = let_through(ZScoreClip(), [1.0] * 40 + [1.0 + 1e-5, 1.02, 3.0])
    assert found[40:42] == pytest.approx([1.0 + 1e-5, 1.02], rel=1e-12)
    assert found[42] < 1.01


def test_z6_the_running_mean_is_fed_with_what_was_let_through():
    transform = ZScoreClip(max_norm=1.0)
    let_through(transform, [5.0] * 60)
    assert transform.state_dict()["mean"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("cut", [3, 24, 25, 26, 55])
def test_z7_resume_equals_an_uninterrupted_run_in_the_warmup_too(cut, tmp_path):
    expected, first, second = let_through(ZScoreClip(), stream()), ZScoreClip(), ZScoreClip()
    let_through(first, stream()[:cut])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = torch.tensor(let_through(second, stream()[cut:]))
    torch.testing.assert_close(found, torch.tensor(expected[cut:]), rtol=0, atol=0, equal_nan=True)


def test_z8_norms_of_bfloat16_gradients_are_float32_and_two_clips_share_nothing():
    one, other = ZScoreClip(warmup_steps=2), ZScoreClip(warmup_steps=2)
    parameter = torch.nn.Parameter(torch.zeros(1001, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    one.transform([parameter])
    assert one.state_dict()["warmup"][0].item() == pytest.approx(math.sqrt(1001), rel=1e-6)
    assert other.state_dict()["step"].item() == 0


def test_z9_nothing_but_spikes_is_clipped_unless_asked_for():
    assert let_through(ZScoreClip(), [50.0] * 40) == pytest.approx([50.0] * 40)
    assert let_through(ZScoreClip(max_norm=1.0), [50.0] * 40) == pytest.approx([1.0] * 40)


def test_zero_norms_alone_do_not_make_zero_the_limit():
    found = let_through(ZScoreClip(), [0.0] * 60 + [1.0])
    assert found[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, r"`ZScoreClip\(alpha=\.\.\.\)` must be at least 0 and less than 1, got 1\.0"),
        ({"z": 0.0}, r"`ZScoreClip\(z=\.\.\.\)` must be larger than 0, got 0\.0"),
        ({"warmup_steps": 1}, r"`ZScoreClip\(warmup_steps=\.\.\.\)` must be at least 2, got 1"),
        ({"max_norm": 0.0}, r"`ZScoreClip\(max_norm=\.\.\.\)` must be larger than 0 or None, got 0\.0"),
        ({"min_std": -0.1}, r"`ZScoreClip\(min_std=\.\.\.\)` must be at least 0 and finite, got -0\.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ZScoreClip(**arguments)


def test_a_state_of_another_warmup_is_refused():
    with pytest.raises(ValueError, match=r"`ZScoreClip\(warmup_steps=\.\.\.\)` must be 25, as in the state, got 9"):
        ZScoreClip(warmup_steps=9).load_state_dict(ZScoreClip().state_dict())
