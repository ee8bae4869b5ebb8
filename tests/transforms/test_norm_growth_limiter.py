# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.transforms.norm_growth_limiter import NormGrowthLimiter

STEPS = 70
SHAPES = [(4, 3), (5,), (1,)]


def stream(seed=0):
    """Gradients of three tensors a step: none now and then, zero now and then, spikes of 1e4, one NaN, one inf."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        if step % 9 == 4:
            gradients[1] = None
        if step in (0, 17):
            gradients[0].zero_()
        if step in (12, 40):
            gradients[0].mul_(1e4)
        if step == 25:
            gradients[2].fill_(torch.nan)
        if step == 51:
            gradients[0][0, 0] = torch.inf
        yield gradients


def run(transform, gradients):
    """The gradients after the transform, step by step."""
    parameters, path = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES], []
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        transform.transform(parameters)
        path.append([parameter.grad for parameter in parameters])
    return path


def norm_of(gradients):
    return math.sqrt(sum(value**2 for gradient in gradients for value in gradient.flatten().tolist()))


def reference_limit(groups, gamma, start_after):
    """Lists of tensors of one norm each, step by step; `None` where there is no gradient."""
    result, last, step = [], 0.0, 0
    for gradients in groups:
        norm = norm_of(gradients)
        if not gradients or not math.isfinite(norm) or norm == 0:
            result.append(gradients)
            continue
        limit = gamma * last if last > 0 and step >= start_after else math.inf
        factor = limit / norm if norm > limit else 1.0
        result.append([gradient * factor for gradient in gradients])
        last, step = norm * factor, step + 1
    return result


def assert_same_path(path, expected):
    for step, expected_step in zip(path, expected, strict=True):
        for gradient, expected_gradient in zip(step, expected_step, strict=True):
            assert (gradient is None) == (expected_gradient is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("start_after", [0, 15])
@pytest.mark.parametrize("gamma", [1.0, 1.01, 3.0])
def test_per_tensor_it_follows_its_equations(gamma, start_after):
    columns = []
    for position in range(len(SHAPES)):
        column = [[step[position]] if step[position] is not None else [] for step in stream()]
        columns.append([step[0] if step else None for step in reference_limit(column, gamma, start_after)])
    path = run(NormGrowthLimiter(gamma, start_after=start_after), stream())
    assert_same_path(path, zip(*columns, strict=True))


@pytest.mark.parametrize("start_after", [0, 15])
@pytest.mark.parametrize("gamma", [1.0, 1.01, 3.0])
def test_globally_it_follows_its_equations(gamma, start_after):
    steps = list(stream())
    limited = reference_limit([[g for g in step if g is not None] for step in steps], gamma, start_after)
    rests = [iter(step) for step in limited]
    expected = [[g if g is None else next(rest) for g in step] for step, rest in zip(steps, rests, strict=True)]
    path = run(NormGrowthLimiter(gamma, per="global", start_after=start_after), steps)
    assert_same_path(path, expected)


def norms(transform, sizes):
    parameter, found = torch.nn.Parameter(torch.zeros(4)), []
    for size in sizes:
        parameter.grad = torch.full((4,), size / 2)
        transform.transform([parameter])
        found.append(parameter.grad.norm().item())
    return found


@pytest.mark.parametrize("per", ["tensor", "global"])
def test_after_a_spike_norms_grow_by_gamma_a_step_at_most_and_fall_freely(per):
    found = norms(NormGrowthLimiter(1.01, per=per), [1.0] + [1e4] * 50 + [1e-3])
    for k, norm in enumerate(found[:51]):
        assert norm == pytest.approx(1.01**k, rel=1e-5)
    assert found[51] == pytest.approx(1e-3)


@pytest.mark.parametrize("per", ["tensor", "global"])
def test_with_an_infinite_gamma_nothing_changes(per):
    path, untouched = run(NormGrowthLimiter(math.inf, per=per), stream()), stream()
    for step, expected in zip(path, untouched, strict=True):
        for gradient, same in zip(step, expected, strict=True):
            assert gradient is same is None or torch.equal(gradient.nan_to_num(7.0), same.nan_to_num(7.0))


def test_f1_a_zero_norm_at_the_start_or_later_locks_nothing():
    """With 1e-8 in place of 0, norms need 1850 steps to be back at 1."""
    assert norms(NormGrowthLimiter(), [0.0, 1.0, 0.0, 0.0, 1.0]) == pytest.approx([0.0, 1.0, 0.0, 0.0, 1.0])
    assert norms(NormGrowthLimiter(), [1.0, 0.0, 50.0]) == pytest.approx([1.0, 0.0, 1.01])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_f3_a_norm_that_is_not_finite_is_not_remembered(bad):
    found = norms(NormGrowthLimiter(), [1.0, bad, 1.0, 50.0])
    assert not math.isfinite(found[1])
    assert found[2:] == pytest.approx([1.0, 1.01])


def test_the_first_steps_can_grow_freely():
    found = norms(NormGrowthLimiter(1.5, start_after=3), [1.0, 10.0, 100.0, 1000.0])
    assert found == pytest.approx([1.0, 10.0, 100.0, 150.0])


def test_clip_rate_is_the_share_of_the_tensors_that_were_limited():
    limiter, several = NormGrowthLimiter(), [torch.nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for sizes in ([1.0, 1.0, 1.0, 1.0], [5.0, 0.5, 1.0, 2.0]):
        for parameter, size in zip(several, sizes, strict=True):
            parameter.grad = torch.full((2,), size)
        limiter.transform(several)
    assert limiter.clip_rate.item() == 0.5


def test_resume_equals_an_uninterrupted_run(tmp_path):
    steps = list(stream())
    expected, first = run(NormGrowthLimiter(start_after=5), steps), NormGrowthLimiter(start_after=5)
    run(first, steps[:33])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = NormGrowthLimiter(start_after=5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step, expected_step in zip(run(second, steps[33:]), expected[33:], strict=True):
        for gradient, same in zip(step, expected_step, strict=True):
            assert gradient is same is None or torch.equal(gradient.nan_to_num(7.0), same.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.99}, r"`NormGrowthLimiter\(gamma=\.\.\.\)` must be at least 1, got 0\.99"),
        ({"gamma": math.nan}, r"`NormGrowthLimiter\(gamma=\.\.\.\)` must be at least 1, got nan"),
        ({"per": "row"}, r'`NormGrowthLimiter\(per=\.\.\.\)` must be "tensor" or "global", got \'row\''),
        ({"start_after": -1}, r"`NormGrowthLimiter\(start_after=\.\.\.\)` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormGrowthLimiter(**arguments)


def test_a_state_of_the_other_kind_is_refused():
    with pytest.raises(ValueError, match=r'per=\.\.\.\)` must be "global", as in the state, got "tensor"'):
        NormGrowthLimiter().load_state_dict(NormGrowthLimiter(per="global").state_dict())
