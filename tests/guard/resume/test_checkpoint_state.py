# SPDX-License-Identifier: Apache-2.0
"""A guard's state that is absurd is refused whole, in one line that names the part."""

import copy
import re

import pytest
import torch

from lightning_stable.detectors import ZScore
from lightning_stable.guard import ClipStep, Rollback, SaveBatch, ScaleLR, SkipStep, SpikeGuard
from tests.faulty_runs import assert_same, make_batches, run
from tests.guard.test_spike_guard import guard

HUGE = [0] * 1_000_000


def used():
    """A guard that has seen a spike."""
    return guard(SaveBatch(times=1), ScaleLR(times=1, recover_after=50), ClipStep(), SkipStep(times=9), Rollback())


@pytest.fixture(scope="module")
def state():
    seen = used()
    run(make_batches(12, {3, 7}), [seen], epochs=1)
    return seen.state_dict()


def changed(state, path, value):
    """A copy in which the part at `path` is another; of `None` it is missing."""
    whole = part = copy.deepcopy(state)
    *way, last = path
    for key in way:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return whole


ABSURD = {
    "no signals": (("signals",), ..., "the guard's state must be a dictionary with `signals`"),
    "a text for signals": (("signals",), "x", "its `signals` must be a dictionary"),
    "a list of detectors": (("signals", "detectors"), [], "its `signals.detectors` must be from name to state"),
    "a detector of no kind": (("signals", "kinds"), {}, "its `signals.kinds` must be a dictionary with 'grad_norm'"),
    "texts in a window": (
        ("signals", "detectors", "loss", "values"),
        ["../../etc"] * 9,
        "its `signals.detectors['loss']` must be the state of its detector",
    ),
    "no window": (
        ("signals", "detectors", "loss", "values"),
        ...,
        "its `signals.detectors['loss']` must be the state of its detector",
    ),
    "a number for a window": (
        ("signals", "detectors", "loss", "values"),
        7,
        "its `signals.detectors['loss']` must be the state of its detector",
    ),
    "no warnings": (("signals", "warnings"), ..., "its `signals` must be a dictionary with `warnings`"),
    "warnings of nothing": (
        ("signals", "warnings", "alarmed"),
        [3],
        "its `signals.warnings.alarmed` must be a list",
    ),
    "a warning of no kind": (
        ("signals", "warnings", "kinds"),
        {},
        "its `signals.warnings.kinds` must be a dictionary with 'loss'",
    ),
    "texts in a block": (
        ("signals", "warnings", "detectors", "loss", "values"),
        ["x"] * 99,
        "its `signals.warnings.detectors['loss']` must be the state of its detector",
    ),
    "a scaler that ran backwards": (("journal", "overflows"), -1, "its `journal.overflows` must be a whole number"),
    "texts for norms": (("signals", "norms", "grad_norm"), ["1"], "its `signals.norms` must be from name to a list"),
    "texts for budgets": (("ladder", "used"), "33333", "its `ladder.used` must be a list of whole numbers from 0"),
    "budgets below 0": (("ladder", "used"), [0, 0, 0, -9, 0], "its `ladder.used` must be a list of whole numbers"),
    "a fraction of a step": (("ladder", "clean_steps"), 0.5, "its `ladder.clean_steps` must be a whole number from 0"),
    "no escalation": (("ladder", "escalation"), None, "its `ladder.escalation` must be a dictionary, got None"),
    "a learning rate of NaN": (("lr_scale", "value"), float("nan"), "its `lr_scale.value` must be a number from 0 to"),
    "a learning rate that explodes": (("lr_scale", "lowest"), 1e9, "its `lr_scale.lowest` must be a number from 0 to"),
    "a text for a rate": (("lr_scale", "value"), "1.0", "its `lr_scale.value` must be a number from 0 to 1, got '1.0'"),
    "incidents that are none": (("journal", "incidents"), ["x"], "its `journal.incidents[0]` must be a dictionary"),
    "an incident with a part too many": (
        ("journal", "incidents", 0, "path"),
        "../../../etc/passwd",
        "its `journal.incidents[0]` must be the fields of an incident",
    ),
    "an incident with a part too few": (
        ("journal", "incidents", 1, "signal"),
        ...,
        "its `journal.incidents[1]` must be the fields of an incident",
    ),
    "a response that leads elsewhere": (
        ("journal", "incidents", 0, "response"),
        "../../evil",
        "its `journal.incidents[0].response` must be the name of a class, got '../../evil'",
    ),
    "a response that colours the terminal": (
        ("journal", "incidents", 0, "response"),
        "\x1b[31m[red]",
        r"its `journal.incidents[0].response` must be the name of a class, got '\x1b[31m[red]'",
    ),
    "batches that are none": (("journal", "incidents", 0, "batches"), "9", "its `journal.incidents[0].batches` must"),
    "a cause that is none": (
        ("journal", "incidents", 0, "cause"),
        7,
        "its `journal.incidents[0].cause` must be a text",
    ),
    "hashes that are none": (
        ("journal", "incidents", 0, "batch_hash"),
        [7],
        "its `journal.incidents[0].batch_hash` must be a list of texts",
    ),
    "a value that is no number": (("journal", "incidents", 0, "value"), "1e", "its `journal.incidents[0].value` must"),
    "losses that are none": (("journal", "best_val_loss"), "low", "its `journal.best_val_loss` must be a number"),
    "a position before the data": (("resume", "position"), -1, "its `resume.position` must be a whole number from 0"),
    "no random state": (("resume", "now"), None, "its `resume.now` must be the states of random number generators"),
    "a generator of texts": (
        ("resume", "now", "python"),
        (3, ("a",) * 625, None),
        "its `resume.now` must be the states of random number generators",
    ),
    "a generator that reads beyond its end": (
        ("resume", "epoch", "numpy"),
        ("MT19937", torch.zeros(624, dtype=torch.int64), 10**6, 0, 0.0),
        "its `resume.epoch` must be the states of random number generators",
    ),
    "a generator that is too short": (
        ("resume", "now", "torch"),
        torch.zeros(3, dtype=torch.uint8),
        "its `resume.now` must be the states of random number generators",
    ),
    "a list without end": (("resume", "now", "torch"), HUGE, "its `resume.now` must be the states of random number"),
    "ranks without any": (("resume", "ranks"), [], "its `resume.ranks` must be a list of at least one, got []"),
    "ranks that are none": (("resume", "ranks"), [3], "its `resume.ranks[0]` must be a dictionary, got 3"),
    "windows of no batch": (
        ("passed_over",),
        {"wanted": 3, "done": 0, "a_window": 0},
        "its `passed_over.a_window` must be a whole number from 1, got 0",
    ),
    "batches passed over for ever": (("passed_over",), HUGE, "its `passed_over` must be a dictionary"),
}


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_state_is_refused_in_one_line_and_nothing_of_it_is_taken_up(what, state):
    path, value, message = ABSURD[what]
    fresh = used()
    before = fresh.state_dict()
    with pytest.raises(
        ValueError, match=f"^`SpikeGuard` cannot take up the checkpoint: {re.escape(message)}"
    ) as raised:
        fresh.load_state_dict(changed(state, path, value))
    assert len(str(raised.value)) < 300
    assert str(raised.value).isprintable()
    for part in ("signals", "ladder", "journal", "lr_scale", "passed_over"):
        assert str(fresh.state_dict()[part]) == str(before[part])


@pytest.mark.parametrize("absurd", [None, 3, "state", [], {}, {1: 2}])
def test_a_state_that_is_no_state_is_refused(absurd):
    with pytest.raises(
        ValueError, match=r"^`SpikeGuard` cannot take up the checkpoint: the guard's state must be a dict"
    ):
        used().load_state_dict(absurd)


def test_a_state_is_taken_up_whole_with_what_is_not_known(state):
    later = changed(state, ("of_a_later_version",), {"anything": 1})
    fresh = used()
    fresh.load_state_dict(later)
    taken_up = fresh.state_dict()
    for part in ("signals", "ladder", "journal", "lr_scale", "passed_over"):
        assert_same(taken_up[part], state[part])
    assert len(fresh.incidents) == 2


def test_the_state_of_a_guard_that_has_not_run_is_taken_up(state):
    used().load_state_dict(SpikeGuard().state_dict())


def test_detectors_of_another_kind_begin_anew_and_are_warned_of_once(state):
    fresh = SpikeGuard(watch={"loss": ZScore()}, ladder=[SkipStep()])
    with pytest.warns(UserWarning, match="was a `MedianDeviation`") as warned:
        fresh.load_state_dict(state)
    assert len([one for one in warned if "'loss'" in str(one.message)]) == 1
