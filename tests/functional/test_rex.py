# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import rex


def reference_rex(x, beta):
    z = 1.0 - x
    return z / ((1.0 - beta) + beta * z)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9])
def test_it_matches_the_equation_for_numbers_and_tensors(beta):
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = torch.tensor([reference_rex(value, beta) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(rex(x, beta), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(rex(x.view(1, 101).T, beta), expected[:, None], rtol=0, atol=1e-15)
    assert [rex(value, beta) for value in x.tolist()] == pytest.approx(expected.tolist(), abs=1e-15)


def test_the_paper_s_curve_passes_through_its_known_values():
    assert [rex(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0])


def test_it_lies_above_the_straight_line_and_falls_ever_faster():
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    curve = rex(x)
    assert (curve[1:-1] > 1 - x[1:-1]).all()
    assert (curve.diff() < 0).all()
    assert (curve.diff().diff() < 0).all()


def test_progress_outside_of_the_run_is_clamped():
    assert rex(-0.5) == 1.0
    assert rex(1.5) == 0.0
    assert rex(torch.tensor([-0.5, 1.5])).tolist() == [1.0, 0.0]


def test_the_longest_plateau_ends_at_the_end():
    assert [rex(x, beta=1.0) for x in (0.0, 0.999, 1.0)] == [1.0, 1.0, 0.0]
    assert rex(torch.tensor([0.0, 0.999, 1.0]), beta=1.0).tolist() == [1.0, 1.0, 0.0]


def test_it_keeps_shape_dtype_and_gradients():
    assert rex(torch.empty(0, 3)).shape == (0, 3)
    assert rex(torch.tensor(0.5)).shape == ()
    assert rex(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.bfloat16
    x = torch.tensor(0.5, requires_grad=True)
    rex(x).backward()
    assert x.grad == pytest.approx(-0.5 / 0.75**2)
    assert math.isnan(rex(math.nan))
    assert rex(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_its_bounds_is_refused(beta):
    with pytest.raises(ValueError, match=r"`rex\(beta=\.\.\.\)` must be in \[0, 1\], got"):
        rex(0.5, beta)
