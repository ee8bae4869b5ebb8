# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lightning_stable.detectors import Above
from lightning_stable.studies.curve import Curve, counted
from lightning_stable.studies.detector_choice import choose_detector
from lightning_stable.studies.false_alarms import budget_of, suggest

TUNED = ["MedianDeviation", "ZScore", "EMAZScore", "Ratio", "Ratio(min_rise=0.01)", "LevelShift(block=10)",
         "MultipleOfMean(patience=0)"]  # fmt: skip


def noise(length=8000, seed=0, tails=3):
    """Positive values around 2 with a few large ones: Student's t."""
    return Curve("loss", counted(length), 2.0 + 0.05 * np.abs(np.random.default_rng(seed).standard_t(tails, length)))


def alarms(choice, curve, where=slice(None)):
    return int((choice.build().scan(curve.values).is_anomaly & np.isfinite(curve.values))[where].sum())


def everywhere(curve):
    return np.ones(len(curve), dtype=bool)


@pytest.mark.parametrize("allowed", [0, 3, 40])
@pytest.mark.parametrize("text", TUNED)
def test_the_suggestion_has_few_enough_alarms_and_the_value_before_it_too_many(text, allowed):
    curve, choice = noise(), choose_detector(text)
    found = suggest(choice, curve, everywhere(curve), allowed)
    assert found is not None
    assert found.alarms == alarms(found.choice, curve) <= allowed
    assert found.alarms_before == alarms(choice, curve)
    assert found.choice.arguments[found.argument] == found.value
    if not found.is_floor:
        offset = 1.0 if found.argument in ("ratio", "multiple") else 0.0
        digits = float(f"{found.value - offset:.1e}")
        assert found.value == pytest.approx(offset + digits, rel=1e-9)  # two digits
        step = 10.0 ** np.floor(np.log10(digits * 0.9999)) / 10
        assert alarms(choice.changed(found.argument, found.value - step), curve) > allowed


def test_more_allowed_alarms_never_need_a_larger_threshold_here():
    curve = noise()
    values = [suggest(choose_detector("ZScore"), curve, everywhere(curve), allowed).value for allowed in (0, 2, 8, 32)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_a_spike_that_hides_others_is_no_trouble():
    """With a low threshold the spike stays out of the window, with a high one it hides those after it."""
    values = noise(2000).values
    values[1000:1040:8] += [30.0, 3.0, 3.0, 3.0, 3.0]
    curve = Curve("loss", counted(2000), values)
    found = suggest(choose_detector("ZScore(window=128, warmup=64)"), curve, everywhere(curve), 1)
    assert found.alarms == alarms(found.choice, curve) <= 1


def test_only_what_is_healthy_counts_and_what_comes_before_is_judged_too():
    curve = noise()
    curve.values[4000] = 50.0
    healthy = (curve.steps >= 2000) & (curve.steps < 4000)
    found = suggest(choose_detector("ZScore"), curve, healthy, 0)
    assert alarms(found.choice, curve, slice(2000, 4000)) == found.alarms == 0
    assert alarms(found.choice, curve) > 0
    assert found.value < suggest(choose_detector("ZScore"), curve, everywhere(curve), 0).value


def test_nan_is_no_false_alarm():
    curve = noise()
    before = suggest(choose_detector("ZScore"), curve, everywhere(curve), 0)
    values = np.insert(curve.values, [500, 900], [np.nan, np.inf])
    with_nan = Curve("loss", counted(len(values)), values)
    assert suggest(choose_detector("ZScore"), with_nan, everywhere(with_nan), 0).value == before.value


def test_where_another_argument_keeps_it_quiet_any_value_will_do():
    curve = noise()
    found = suggest(choose_detector("MedianDeviation(min_rise=100)"), curve, everywhere(curve), 0)
    assert found.is_floor
    assert found.alarms == 0
    assert suggest(choose_detector("LevelShift"), noise(100), np.ones(100, dtype=bool), 0).is_floor


@pytest.mark.parametrize(("text", "sign"), [("Above(limit=0)", 1), ("Below(limit=100)", -1)])
@pytest.mark.parametrize("allowed", [0, 5])
def test_a_fixed_limit_is_put_next_to_the_values(text, sign, allowed):
    curve = noise()
    found = suggest(choose_detector(text), curve, everywhere(curve), allowed)
    assert found.argument == "limit"
    assert found.alarms_before == 8000
    assert found.alarms == alarms(found.choice, curve) <= allowed
    assert alarms(found.choice.changed("limit", found.value - sign * 0.002), curve) > allowed or sign < 0
    beyond = np.sort(sign * curve.values)[-1 - allowed]
    assert sign * found.value == pytest.approx(beyond, rel=1e-3)
    assert sign * found.value >= beyond


@pytest.mark.parametrize("text", ["NonFinite", "AnyOf", "Consecutive", "AllOf"])
def test_a_detector_without_such_an_argument_has_no_suggestion(text):
    curve = noise(100)
    assert suggest(choose_detector(text), curve, everywhere(curve), 0) is None


class Picky(Above):
    """A detector of somebody's own, with a bound of its own."""

    def __init__(self, threshold: float = 10.0) -> None:
        if not 1 <= threshold <= 20:
            raise ValueError("`Picky(threshold=...)` must be from 1 to 20.")
        super().__init__(threshold)


def test_values_that_a_detector_refuses_are_not_suggested():
    curve = noise()
    choice = choose_detector("ZScore")
    own = type(choice)({"class_path": f"{__name__}.Picky", "init_args": {"threshold": 10.0}})
    found = suggest(own, curve, everywhere(curve), 0)
    assert found.value == pytest.approx(np.max(curve.values), rel=0.1)
    curve.values[100] = 50.0
    assert suggest(own, curve, everywhere(curve), 0) is None


@pytest.mark.parametrize("value", [5e-324, -1e-320, 0.0, 1.7976931348623157e308, -1e308])
@pytest.mark.parametrize("text", ["Above", "Below", "ZScore(threshold=1e400)", "Ratio(ratio=1e300)"])
def test_the_ends_of_float64_are_no_trouble(text, value):
    curve = Curve("loss", counted(300), np.full(300, value))
    with np.errstate(all="ignore"):
        found = suggest(choose_detector(text), curve, everywhere(curve), 0)
    assert found.alarms == 0
    if found.argument == "limit":
        assert found.value == value


def test_a_curve_without_a_finite_healthy_value_has_no_limit():
    curve = Curve("loss", counted(3), np.full(3, np.nan))
    assert suggest(choose_detector("Above"), curve, everywhere(curve), 0) is None
    assert suggest(choose_detector("ZScore"), curve, everywhere(curve), 0).is_floor


@pytest.mark.parametrize(
    ("rate", "values", "allowed"), [(1, 999_999, 0), (1, 1_000_000, 1), (10, 250_000, 2), (0, 5, 0), (0.1, 10**7, 1)]
)
def test_the_budget_is_the_rate_rounded_down(rate, values, allowed):
    budget = budget_of(rate, np.ones(values, dtype=bool))
    assert (budget.allowed, budget.values, budget.is_too_short) == (allowed, values, allowed == 0)


def test_progress_is_told():
    told = []
    curve = noise()
    suggest(choose_detector("ZScore"), curve, everywhere(curve), 0, lambda what, share: told.append((what, share)))
    assert told[0][0] == "ZScore(): counting alarms with threshold=6"
    assert all(0 < share <= 1 for _, share in told)
