# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.transforms import SpikeClip

SHAPES = [(6, 4), (5,), ()]


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    if step % 7 == 3:
        found = [gradient * 100 for gradient in found]
    found[0][1] *= step > 30  # as of an embedding that is seen late
    if step % 5 == 2:
        found[1] = None
    return found


def parameters():
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]


def run(clip, steps, params=None):
    """The gradients after the transform, step by step."""
    params, ends = params or parameters(), []
    for step in steps:
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        clip.transform(params)
        ends.append([None if parameter.grad is None else parameter.grad.clone() for parameter in params])
    return ends


def clipped_by_hand(steps, threshold, start_after, reset_interval, beta2):
    v = [[0.0] * max(1, math.prod(shape)) for shape in SHAPES]
    ends = []
    for t in range(1, steps + 1):
        if reset_interval is not None and t % reset_interval == 0:
            v = [[0.0] * len(entries) for entries in v]
        settled = t if reset_interval is None else min(t, t % reset_interval)
        step_ends = []
        for i, gradient in enumerate(gradients(t)):
            if gradient is None:
                step_ends.append(None)
                continue
            entries = []
            for j, g in enumerate(gradient.flatten().tolist()):
                if settled >= start_after and v[i][j] > 0 and g * g > threshold * v[i][j]:
                    g = math.copysign(math.sqrt(threshold * v[i][j]), g)
                v[i][j] = beta2 * v[i][j] + (1 - beta2) * g * g
                entries.append(g)
            step_ends.append(torch.tensor(entries, dtype=torch.float64).reshape(gradient.shape))
        ends.append(step_ends)
    return ends


@pytest.mark.parametrize("reset_interval", [None, 17])
def test_it_follows_its_equations_without_an_optimizer(reset_interval):
    settings = {"threshold": 8.0, "start_after": 5, "reset_interval": reset_interval, "beta2": 0.9}
    ours = run(SpikeClip(**settings), range(1, 71))
    for step, expected in zip(ours, clipped_by_hand(70, **settings), strict=True):
        for a, b in zip(step, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_with_an_optimizer_it_judges_by_that_optimizer_s_second_moment():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.5))
    clip = SpikeClip(threshold=4.0, start_after=0)
    clip.bind(optimizer)
    for value in (1.0, 1.0, 100.0):
        parameter.grad = torch.full((2,), value)
        clip.transform([parameter])
        optimizer.step()
    assert parameter.grad.tolist() == pytest.approx([math.sqrt(4 * 0.75)] * 2)
    assert clip.state_dict()["exp_avg_sq"] == {}


def test_entries_that_never_had_a_gradient_are_not_clipped_to_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    clip = SpikeClip(start_after=0)
    for step in range(30):
        parameter.grad = torch.tensor([1.0, float(step >= 25)])
        clip.transform([parameter])
        assert parameter.grad[1] == float(step >= 25)


def test_infinity_is_clipped_and_nan_stays_and_neither_is_remembered():
    parameter = torch.nn.Parameter(torch.zeros(3))
    clip = SpikeClip(threshold=4.0, start_after=2)
    for gradient in ([1.0, 1.0, 1.0], [torch.inf, torch.nan, 1.0], [1e-3, 1e-3, 1e-3]):
        parameter.grad = torch.tensor(gradient)
        clip.transform([parameter])
        if gradient[0] == torch.inf:
            assert parameter.grad[0] == pytest.approx(math.sqrt(4 * 0.001))
            assert parameter.grad[1].isnan()
    assert all(value.isfinite().all() for value in clip.state_dict()["exp_avg_sq"].values())
    assert parameter.grad.tolist() == pytest.approx([1e-3] * 3)


def test_the_clip_rate_is_the_share_of_entries():
    parameter = torch.nn.Parameter(torch.zeros(4))
    clip = SpikeClip(threshold=4.0, start_after=0)
    for gradient in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.01, 0.01, 0.01]):
        parameter.grad = torch.tensor(gradient)
        clip.transform([parameter])
    assert clip.clip_rate == 0.25  # sqrt(4 * 0.001) is the limit


def test_a_resume_is_bit_identical(tmp_path):
    settings = {"threshold": 8.0, "start_after": 5, "reset_interval": 17, "beta2": 0.9}
    expected = run(SpikeClip(**settings), range(1, 50))[24:]
    first, second = SpikeClip(**settings), SpikeClip(**settings)
    run(first, range(1, 25))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for ours, theirs in zip(run(second, range(25, 50)), expected, strict=True):
        assert all((a is b is None) or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"threshold": 0.0}, r"`SpikeClip\(threshold=...\)` must be above 0, got 0.0"),
        ({"start_after": -1}, r"`SpikeClip\(start_after=...\)` must be at least 0, got -1"),
        ({"reset_interval": 0}, r"`SpikeClip\(reset_interval=...\)` must be at least 1 or None, got 0"),
        ({"beta2": 1.0}, r"`SpikeClip\(beta2=...\)` must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        SpikeClip(**argument)
