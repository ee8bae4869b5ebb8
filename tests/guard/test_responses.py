# SPDX-License-Identifier: Apache-2.0
import inspect

import jsonargparse
import pytest

import lightning_stable.guard as room
from lightning_stable.guard import Halt, ResetMomentum, Response, Rollback, ScaleLR, SkipStep, TrainingHalted

RESPONSES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Response) and not inspect.isabstract(member)
]


class Recorder:
    """Writes down what it is asked for."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, *args, *kwargs.values()))
            return [name]

        return call


@pytest.mark.parametrize(
    ("response", "calls"),
    [
        (SkipStep(), [("undo_step", False)]),
        (SkipStep(count_skipped=True), [("undo_step", True)]),
        (Rollback(mode="skip"), [("roll_back", False)]),
        (Rollback(mode="replay"), [("roll_back", True)]),
        (ScaleLR(factor=0.25), [("undo_step", False), ("scale_lr", 0.25)]),
        (ResetMomentum(moments="all"), [("undo_step", False), ("reset_momentum", "all")]),
        (Halt(), [("undo_step", False)]),
    ],
)
def test_a_response_asks_for_what_it_is_named_after(response, calls):
    recorder = Recorder()
    assert response.respond(recorder) == [name for name, *_ in calls]
    assert recorder.calls == calls


@pytest.mark.parametrize("kind", RESPONSES, ids=lambda kind: kind.__name__)
def test_it_constructs_without_arguments_and_from_yaml(kind):
    assert kind().times >= 1
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--response", type=Response)
    config = parser.parse_args([f"--response={kind.__module__}.{kind.__name__}"])
    assert type(parser.instantiate(config).response) is kind


def test_only_what_goes_back_needs_snapshots():
    assert [kind.__name__ for kind in RESPONSES if kind().needs_snapshots] == ["Rollback"]
    assert not Rollback(mode="skip").needs_replay
    assert Rollback(mode="replay").needs_replay


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipStep(times=0), r"`SkipStep\(times=...\)` must be at least 1, got 0"),
        (lambda: Rollback(mode="rewind"), r"""`Rollback\(mode=...\)` must be "skip" or "replay", got 'rewind'"""),
        (lambda: ScaleLR(factor=1.0), r"`ScaleLR\(factor=...\)` must lie between 0 and 1, both excluded, got 1.0"),
        (lambda: ScaleLR(factor=float("nan")), "got nan"),
        (lambda: ResetMomentum(moments="second"), r"""must be "first" or "all", got 'second'"""),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_exception_carries_its_report():
    with pytest.raises(TrainingHalted, match="why") as caught:
        raise TrainingHalted("why")
    assert caught.value.report == "why"
