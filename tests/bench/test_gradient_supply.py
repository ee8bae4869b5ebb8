# SPDX-License-Identifier: Apache-2.0
"""Gradients are what their kind says, in every step of a measurement."""

import math

import pytest
import torch

from lightning_stable.bench.gradient_supply import SETS, WARM_UP, GradientSupply, transformer_shapes

CPU = torch.device("cpu")
SHAPES = [(64, 16), (16,), (16, 8)]
STEPS = 200


def given(kind, steps=STEPS, **arguments):
    """Yield the gradients of every step."""
    supply = GradientSupply(SHAPES, CPU, **arguments)
    for step in range(steps):
        supply.give(kind, step)
        yield [parameter.grad for parameter in supply.parameters]


@pytest.mark.parametrize("size", [0.01e6, 0.3e6, 1e6, 10e6, 50e6, 123e6, 1e9])
def test_shapes_are_those_of_a_transformer_and_about_as_many_as_asked_for(size):
    shapes = transformer_shapes(size)
    width = shapes[0][1]
    assert sum(map(math.prod, shapes)) == pytest.approx(size, rel=0.08)
    assert set(shapes) == {(32 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,),
                           (4 * width,)}  # fmt: skip
    assert 6 <= shapes.count((width, width)) / 4 <= 31


def test_the_widths_are_those_of_small_gpts():
    assert [transformer_shapes(size)[0][1] for size in (10e6, 50e6)] == [256, 512]


def test_gradients_change_from_step_to_step():
    before = None
    for gradients in given("calm", steps=WARM_UP + SETS):
        assert before is None or not any(map(torch.equal, gradients, before))
        before = [gradient.clone() for gradient in gradients]


def test_gradients_are_given_anew_whatever_was_done_to_them():
    supply = GradientSupply(SHAPES, CPU)
    supply.give("calm", 9)
    expected = [parameter.grad.clone() for parameter in supply.parameters]
    for parameter in supply.parameters:
        parameter.grad.zero_()
    supply.give("calm", 9)
    assert all(torch.equal(parameter.grad, each) for parameter, each in zip(supply.parameters, expected, strict=True))


def test_no_calm_entry_is_above_its_limit_in_spam_or_the_mean_of_the_largest():
    v = [torch.zeros(shape) for shape in SHAPES]
    largest = [[] for _ in SHAPES]
    for step, gradients in enumerate(given("calm")):
        for index, gradient in enumerate(gradients):
            largest[index].append(gradient.abs().max().item())
            if step >= SETS:
                assert (gradient.square() < 5000 * v[index]).all()
            if step >= WARM_UP:
                assert largest[index][-1] < sum(largest[index]) / (step + 1)
            v[index].lerp_(gradient.square(), 0.001)


def test_spiked_is_calm_but_for_one_entry_of_every_tensor_which_is_larger_than_any_before():
    before = [0.0] * len(SHAPES)
    for step, (gradients, calm) in enumerate(zip(given("spiked"), given("calm"), strict=True)):
        for index, gradient in enumerate(gradients):
            differs = gradient != calm[index]
            assert differs.sum() == (step >= WARM_UP)
            if step >= WARM_UP:
                assert (
                    gradient[differs].item()
                    == gradient.abs().max()
                    > max(1e6 * calm[index].abs().mean(), before[index])
                )
                before[index] = gradient.abs().max().item()


def test_spikes_move_on():
    places = [[int(gradient.argmax()) for gradient in gradients] for gradients in given("spiked", WARM_UP + 3)]
    assert all(len(set(of_one)) == 3 for of_one in zip(*places[WARM_UP:], strict=True))


def test_of_ordinary_gradients_about_half_have_an_entry_above_the_mean_of_the_largest():
    largest = [[gradient.abs().max().item() for gradient in gradients] for gradients in given("ordinary")]
    above = [now > sum(before) / len(before) for before in zip(*largest, strict=True) for now in before]
    assert 0.3 < sum(above) / len(above) < 0.7


def test_numbers_depend_on_the_seed_and_not_on_torchs_own():
    state = torch.get_rng_state()
    one, same, other = (next(given("calm", seed=seed))[0].clone() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
