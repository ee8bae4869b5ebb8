# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.transforms import AdaClip


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(6, 4), (5,), ()]]
    if step % 7 == 3:
        found[0][2, 1] = -500.0
    if step % 5 == 2:
        found[1] = None
    return found


def test_it_follows_its_equations():
    clip = AdaClip(theta=0.9)
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in [(6, 4), (5,), ()]]
    mean, seen = [0.0] * 3, [0] * 3
    for step in range(1, 71):
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = gradient
        clip.transform(params)
        for i, gradient in enumerate(gradients(step)):
            if gradient is None:
                continue
            entries = gradient.flatten().tolist()
            largest = max(abs(g) for g in entries)
            seen[i] += 1
            mean[i] = 0.9 * mean[i] + 0.1 * largest
            threshold = mean[i] / (1 - 0.9 ** seen[i])
            expected = [g / largest * threshold if abs(g) > threshold else g for g in entries]
            ours = params[i].grad.flatten()
            torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_spike_comes_through_at_a_size_that_the_tensor_has_known():
    parameter = torch.nn.Parameter(torch.zeros(100))
    clip = AdaClip()
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        parameter.grad = torch.randn(100, generator=generator)
        if step == 499:
            parameter.grad[3] = 1000.0
        clip.transform([parameter])
    assert 2.5 < parameter.grad.abs().max() < 6  # the threshold: 2.5 before, and a little more through the spike itself


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_left_alone_and_not_remembered(bad):
    parameter = torch.nn.Parameter(torch.zeros(2))
    clip = AdaClip()
    for value in (1.0, bad, 1.0):
        parameter.grad = torch.tensor([1.0, value])
        clip.transform([parameter])
        assert torch.equal(parameter.grad, torch.tensor([1.0, value])) or value != value
    assert clip.state_dict()["step"].tolist() == [2.0]
    assert clip.state_dict()["mean"].isfinite().all()


def test_the_clip_rate_is_the_share_of_tensors():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    clip = AdaClip()
    for value in (1.0, 2.0):
        params[0].grad, params[1].grad = torch.full((2,), value), torch.full((2,), 1.0 / value)
        clip.transform(params)
    assert clip.clip_rate == 0.5


@pytest.mark.parametrize("theta", [-0.1, 1.0])
def test_bad_arguments_are_named(theta):
    with pytest.raises(ValueError, match=rf"`AdaClip\(theta=...\)` must be at least 0 and less than 1, got {theta}"):
        AdaClip(theta=theta)
