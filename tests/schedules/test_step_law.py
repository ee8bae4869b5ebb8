# SPDX-License-Identifier: Apache-2.0
import math
import warnings

import pytest

from lightning_stable.schedules import StepLaw, step_law


def reference(params, tokens):
    """In logarithms, as it was fitted."""
    n, d = math.log(params), math.log(tokens)
    return math.exp(math.log(1.79) - 0.713 * n + 0.307 * d), math.exp(math.log(0.58) + 0.571 * d)


@pytest.mark.parametrize("params", [59_968_512, 214_663_680, 1_073_741_824])
@pytest.mark.parametrize("tokens", [2e9, 28.4e9, 100e9])
def test_it_is_the_papers_formula_and_silent_where_it_was_fitted(params, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_law(params, tokens) == pytest.approx(reference(params, tokens), rel=1e-12)


def test_the_fit_of_the_published_runs_gives_the_same():
    """The mean of 1000 bootstrap fits to the authors' table of runs: intercepts and exponents."""
    n, d = math.log(4e8), math.log(4e10)
    law = step_law(4e8, 4e10)
    assert law.lr == pytest.approx(math.exp(0.5863 - 0.7129 * n + 0.3075 * d), rel=0.02)
    assert law.batch_size_tokens == pytest.approx(math.exp(-0.5435 + 0.5709 * d), rel=0.02)


def test_larger_models_learn_slower_and_more_data_faster_in_larger_batches():
    rates = [step_law(params, 1e10).lr for params in (1e8, 3e8, 1e9)]
    laws = [step_law(1e8, tokens) for tokens in (3e9, 1e10, 1e11)]
    assert rates == sorted(rates, reverse=True)
    assert laws == sorted(laws)
    assert len({step_law(params, 1e10).batch_size_tokens for params in (1e8, 3e8, 1e9)}) == 1


@pytest.mark.parametrize(
    ("params", "tokens", "said"),
    [
        (1e7, 1e10, "params from 5.9e[+]07 to 1.1e[+]09, and you have 1e[+]07"),
        (7e10, 1e10, "params from .* and you have 7e[+]10"),
        (1e9, 15e12, "tokens from 2e[+]09 to 1e[+]11, and you have 1.5e[+]13"),
        (1e5, 1e6, "params from .*; on tokens from .*"),
    ],
)
def test_it_warns_with_numbers_outside_of_what_it_was_fitted_on(params, tokens, said):
    with pytest.warns(UserWarning, match=said) as caught:
        law = step_law(params, tokens)
    assert law == pytest.approx(reference(params, tokens), rel=1e-12)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match=r"`step_law\(params=...\)` must be a number above 0, got"):
        step_law(value, 1e10)
    with pytest.raises(ValueError, match=r"`step_law\(tokens=...\)` must be a number above 0, got"):
        step_law(1e9, value)


def test_the_result_has_names():
    assert isinstance(step_law(1e9, 1e10), StepLaw)
    assert StepLaw._fields == ("lr", "batch_size_tokens")
