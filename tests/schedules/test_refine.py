# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
import torch

from lightning_stable.schedules.refine import interpolated, load_schedule, refine, save_schedule


def reference_refine(norms, norm, filter_width):
    """The equation, slow and obvious, for at most 1,000 finite norms above 0."""
    half = (2 * (int(filter_width * len(norms)) // 2) + 1) // 2
    reflected = [norms[-2 - i] for i in range(half)]
    padded = [norms[0]] * half + list(norms) + reflected
    smooth = [sorted(padded[t : t + 2 * half + 1])[half] for t in range(len(norms))]
    weights = [g**-2 if norm == "l2" else 1 / g for g in smooth]
    schedule = [w * sum(weights[t + 1 :]) for t, w in enumerate(weights)]
    return [value / max(schedule) for value in schedule]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("filter_width", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("steps", [2, 3, 10, 101])
def test_it_matches_the_equation(norm, filter_width, steps):
    norms = (torch.rand(steps, generator=torch.Generator().manual_seed(steps), dtype=torch.float64) + 0.1).tolist()
    expected = reference_refine(norms, norm, filter_width)
    assert refine(norms, norm, filter_width).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("smallest", [1e-9, 1e-12, 1e-50])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_small_norm_cancels_nothing(smallest, place):
    norms = [2.0, 1.0, 1.0, 2.0]
    norms[place] = smallest
    schedule = refine(norms, "l1").tolist()
    expected = reference_refine(norms, "l1", 0.0)
    assert schedule == pytest.approx(expected, rel=1e-9)
    assert all(value > 0 for value in schedule[:-1])
    assert refine(norms, "l2").isfinite().all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("steps", [2, 10, 1000, 12_345])
def test_constant_norms_give_exactly_linear_decay(norm, steps):
    schedule = refine([0.37] * steps, norm)
    n = len(schedule)
    assert n == min(steps, 1000)
    assert schedule.tolist() == [(n - 1 - t) / (n - 1) for t in range(n)]


def test_norms_that_fall_and_rise_give_warmup_and_a_sharp_anneal():
    falls = [3 - 2 * t / 300 for t in range(300)]
    rises = [1 + 4 * t / 100 for t in range(100)]
    schedule = refine(falls + [1.0] * 600 + rises, "l1", filter_width=0.02).tolist()
    peak = schedule.index(max(schedule))
    assert schedule[0] < 0.6
    assert 200 < peak < 400
    assert (torch.tensor(schedule[:peak]).diff() >= 0).all()
    straight = [(999 - t) / (999 - peak) for t in range(1000)]
    assert schedule[600] == pytest.approx(straight[600], rel=0.1)  # norms are constant there
    assert schedule[950] < 0.15 * straight[950]
    assert schedule[-1] == 0.0


def test_a_single_spike_in_the_norms_does_not_show():
    norms = [1.0] * 200
    spiky = norms.copy()
    spiky[50] = 1e9
    spiky[120] = math.inf
    assert torch.allclose(refine(spiky)[:190], refine(norms)[:190], atol=0.01)


def test_long_runs_become_a_thousand_values_of_their_parts():
    norms = torch.linspace(2.0, 1.0, 50_000)
    schedule = refine(norms, "l1", filter_width=0.0)
    assert len(schedule) == 1000
    few = refine(norms[25::50], "l1", filter_width=0.0)
    torch.testing.assert_close(schedule, few, rtol=1e-3, atol=1e-3)


def test_norms_of_any_kind_will_do():
    for norms in (torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), torch.ones(6)[::2], [1, 2, 3], (1.0, 0.0, 2.0)):
        schedule = refine(norms)
        assert schedule.dtype == torch.float64
        assert schedule.isfinite().all()
    assert refine([1e-30, 1e-200, 1e200, 1.0]).isfinite().all()
    assert refine([1e-150, 1.0, 1.0, 1.0]).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gradient_norms": []}, "needs two or more norms above 0, got 0"),
        ({"gradient_norms": [1.0, math.nan, 0.0]}, "needs two or more norms above 0, got 1"),
        ({"gradient_norms": [1.0, -1.0]}, "must not be below 0, got -1.0"),
        ({"gradient_norms": [1.0, 1.0], "norm": "linf"}, r"`refine\(norm=...\)` must be one of 'l2', 'l1', got 'linf'"),
        ({"gradient_norms": [1.0, 1.0], "filter_width": 1.0}, r"`refine\(filter_width=...\)` must be a number in"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        refine(**arguments)


def test_a_schedule_comes_back_from_its_file(tmp_path):
    schedule = refine([3.0, 1.0, 1.0, 2.0])
    save_schedule(tmp_path / "refined.json", schedule, "l2")
    assert load_schedule(tmp_path / "refined.json") == pytest.approx(schedule.tolist(), abs=1e-9)
    assert json.loads((tmp_path / "refined.json").read_text())["norm"] == "l2"
    assert [path.name for path in tmp_path.iterdir()] == ["refined.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\x00", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 0]", "has no `schedule`"),
        (b'{"schedule": [1]}', "has no `schedule`"),
        (b'{"schedule": [0, 0]}', "has no `schedule`"),
        (b'{"schedule": [1, -0.5]}', "has no `schedule`"),
        (b'{"schedule": [1, NaN]}', "has no `schedule`"),
        (b'{"schedule": [1, "0"]}', "has no `schedule`"),
        (b'{"schedule": [1, [0]]}', "has no `schedule`"),
        (b'{"schedule": {"1": 0, "2": 1}}', "has no `schedule`"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_holds_no_schedule_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "wrong.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"`Refined\(path=...\)`: .*wrong.json {said}"):
        load_schedule(tmp_path / "wrong.json")


def test_between_two_values_there_is_a_straight_line():
    assert [interpolated([0.0, 1.0, 0.5], share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 1, 0.75, 0.5]
