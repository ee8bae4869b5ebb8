# SPDX-License-Identifier: Apache-2.0
"""Going back further, passing over batches, and harder each time: still as if the loader had never held them."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.guard import Halt, Rollback, SkipData, SkipStep, SpikeGuard
from tests.faulty_runs import ManualNet, Net, TextNet, assert_same, make_batches, run
from tests.guard.test_responses import Recorder
from tests.guard.test_spike_guard import COUNT, TwoOptimizers, fused_adamw, guard, scaler_plugin, without

# What a response asks for


class Repeats(Recorder):
    """A place that has fired `times` times before."""

    def __init__(self, times):
        super().__init__()
        self.repeats = lambda: times


@pytest.mark.parametrize(
    ("response", "repeats", "calls"),
    [
        (Rollback(mode="skip"), 0, [("roll_back", 1, False, 0)]),
        (Rollback(mode="replay", back=3), 5, [("roll_back", 3, True, 0)]),
        (Rollback(escalate=8), 0, [("roll_back", 1, False, 0)]),
        (Rollback(escalate=8), 1, [("roll_back", 2, False, 8)]),
        (Rollback(escalate=8, back=2, mode="replay"), 3, [("roll_back", 5, True, 32)]),
        (Rollback(reset_momentum=True), 0, [("roll_back", 1, False, 0), ("reset_momentum", "first")]),
        (SkipData(batches=5), 0, [("roll_back", 1, False, 5)]),
        (SkipData(batches=5, back=2), 2, [("roll_back", 4, False, 20)]),
    ],
)
def test_a_response_asks_for_more_the_more_often_it_did_not_help(response, repeats, calls):
    recorder = Repeats(repeats)
    response.respond(recorder)
    assert recorder.calls == calls


@pytest.mark.parametrize(
    ("response", "snapshots"),
    [
        (Rollback(), 1),
        (Rollback(back=3), 3),
        (Rollback(escalate=1), 2),
        (SkipData(), 2),
        (SkipData(times=1, back=2), 2),
    ],
)
def test_as_many_snapshots_are_kept_as_it_can_make_use_of(response, snapshots):
    assert response.needs_snapshots == snapshots


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollback(mode="rewind"), r"""`Rollback\(mode=...\)` must be "skip" or "replay", got 'rewind'"""),
        (lambda: Rollback(back=0), r"`Rollback\(back=...\)` must be at least 1, got 0"),
        (lambda: Rollback(escalate=-1), r"`Rollback\(escalate=...\)` must be at least 0, got -1"),
        (lambda: SkipData(batches=0), r"`SkipData\(batches=...\)` must be at least 1, got 0"),
        (lambda: SkipData(back=0), r"`SkipData\(back=...\)` must be at least 1, got 0"),
        (lambda: SpikeGuard(ladder=[Rollback(back=3)], snapshots=2), r"must be at least 3, as far .* got 2"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The promise, against a slow restatement of the rules


def rules(count, bad, response, every, a_window, slots):
    """The batches of an epoch that are left out, and for each incident how many were passed over and rolled back."""
    windows = [list(range(start, min(start + a_window, count))) for start in range(0, count, a_window)]
    trained, snapshots, replays, incidents = [], [], [], []
    since = wanted = rollbacks = near = 0
    new = iter(windows)
    while True:
        is_replayed = bool(replays)
        window = replays.pop(0) if replays else next(new, None)
        if window is None:
            left_out = set(range(count)) - {index for window in trained for index in window}
            return left_out, incidents
        if wanted > 0 and not is_replayed:
            wanted -= len(window)
            continue
        if not snapshots or since >= every:
            snapshots = [*snapshots, len(trained)][-slots:]
            since = 0
        since += 1
        if not bad & set(window):
            trained.append(window)
            near = max(0, near - 1)
            continue
        again = rollbacks if near else 0
        if isinstance(response, SkipData):
            back, replay, over = response.back + again, False, response.batches * 2**again
        else:
            again = again if response.escalate else 0
            back, replay = response.back + again, response.mode == "replay"
            over = response.escalate * 2 ** (again - 1) if again else 0
        snapshots = snapshots[: max(1, len(snapshots) - back + 1)]
        good, trained = trained[snapshots[-1] :], trained[: snapshots[-1]]
        rollbacks, near = (rollbacks if near else 0) + 1, len(good) + 1 + (len(good) if replay else 0)
        replays = [*good, *replays] if replay else replays
        left = count - 1 - max(index for one in [window, *good, *replays] for index in one)
        wanted = min(max(-(-over // a_window) * a_window, wanted), left)
        since = 0
        incidents.append((wanted, len(good)))


def check(bad, response, every=3, a_window=1, count=COUNT, slots=None, kind="net", **arguments):
    slots = slots or response.needs_snapshots
    guarded = guard(response, snapshot_every=every, snapshots=slots, forgive_after=None)
    arguments = {"epochs": 1, "accumulate_grad_batches": a_window, **arguments}
    actual = run(make_batches(count, bad, kind=kind), [guarded], **arguments)
    left_out, incidents = rules(count, bad, response, every, a_window, slots)
    assert [(one.batches_passed_over, one.steps_rolled_back) for one in guarded.incidents] == incidents
    assert {one.response for one in guarded.incidents} == {type(response).__name__}
    assert_same(actual, run(without(make_batches(count, kind=kind), left_out), **arguments))
    return left_out


PLACES = {
    "first": {0},
    "second": {1},
    "middle": {7},
    "last": {31},
    "twice in a row": {9, 10},
    "in two windows": {8, 10},
    "both ends": {0, 31},
    "all over": {2, 9, 17},
}
BACK = {
    "skip": lambda back: Rollback(times=99, back=back),
    "replay": lambda back: Rollback(mode="replay", times=99, back=back),
    "escalate": lambda back: Rollback(times=99, back=back, escalate=1),
    "replay and escalate": lambda back: Rollback(mode="replay", times=99, back=back, escalate=2),
    "skip data": lambda back: SkipData(batches=2, times=99, back=back),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("back", [1, 2])
@pytest.mark.parametrize("a_window", [1, 2])
@pytest.mark.parametrize("how", BACK)
def test_the_result_is_that_of_a_loader_without_what_was_left_out(how, a_window, back, where):
    left_out = check(PLACES[where], BACK[how](back), every=2, a_window=a_window, slots=3, count=32)
    assert PLACES[where] <= left_out


def test_the_rules_say_what_the_words_say():
    """Some left out sets worked out by hand: snapshots before 0, 3, 6, 9."""
    assert rules(12, {7}, Rollback(), 3, 1, 1) == ({6, 7}, [(0, 1)])
    assert rules(12, {7}, Rollback(back=2), 3, 1, 2) == ({3, 4, 5, 6, 7}, [(0, 4)])
    assert rules(12, {7}, Rollback(mode="replay", back=2), 3, 1, 2) == ({7}, [(0, 4)])
    assert rules(12, {7}, SkipData(batches=3), 3, 1, 2) == ({6, 7, 8, 9, 10}, [(3, 1)])
    assert rules(12, {7}, SkipData(batches=3), 3, 2, 2) == ({6, 7, 8, 9, 10, 11}, [(4, 0)])
    assert rules(12, {10}, SkipData(batches=3), 3, 1, 2) == ({9, 10, 11}, [(1, 1)])  # the epoch is over
    # 7 goes back to 6, 8 is of the same place: back to 3, and 1 is passed over
    assert rules(12, {7, 8}, Rollback(escalate=1), 3, 1, 2) == ({3, 4, 5, 6, 7, 8, 9}, [(0, 1), (1, 3)])


SETTINGS = {
    "epoch schedule": {"model": lambda: Net(epoch_schedule=True)},
    "16-mixed fused": {"plugins": scaler_plugin, "model": lambda: Net(fused_adamw)},
    "manual": {"model": ManualNet},
    "two workers": {"num_workers": 2},
    "gpt": {"model": TextNet, "kind": "text"},
}


@pytest.mark.parametrize("bad", [{5}, {COUNT - 1}, {7, 8}])
@pytest.mark.parametrize("how", ["replay and escalate", "skip data"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_it_holds_whatever_is_trained(setting, how, bad):
    arguments = dict(SETTINGS[setting])
    if "plugins" not in arguments:
        check(bad, BACK[how](1), **arguments)
        return
    left_out, _ = rules(COUNT, bad, BACK[how](1), 3, 1, 2)
    make = arguments.pop("plugins")
    guarded = guard(BACK[how](1), snapshot_every=3, forgive_after=None, snapshots=2)
    actual = run(make_batches(COUNT, bad), [guarded], epochs=1, plugins=[make()], **arguments)
    assert_same(actual, run(without(make_batches(COUNT), left_out), epochs=1, plugins=[make()], **arguments))


def test_a_fault_that_comes_during_a_replay_goes_back_further():
    """A weight that is bad only while it is trained on the second time: batch 4 fires in the replay after batch 5."""

    class FiresInReplay(Net):
        tried = 0

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            is_fourth = torch.equal(batch["y"], make_batches(COUNT)[4]["y"])
            self.tried += is_fourth
            return loss * float("nan") if is_fourth and self.tried == 2 else loss

    response = Rollback(mode="replay", times=9, escalate=2)
    guarded = guard(response, snapshot_every=2, snapshots=2)
    actual = run(make_batches(COUNT, {5}), [guarded], model=FiresInReplay, epochs=1)
    assert_same(actual, run(without(make_batches(COUNT), {4, 5, 6, 7}), epochs=1))
    first, second = guarded.incidents
    assert (first.batches, first.steps_rolled_back, first.batches_passed_over) == ([5], 1, 0)
    assert (second.steps_rolled_back, second.batches_passed_over) == (2, 2)


class SecondFails(TwoOptimizers):
    """Of batch 7 the second optimizer gets a NaN, after the first has made its step."""

    def training_step(self, batch, batch_idx):
        is_bad = torch.equal(batch["y"], make_batches(COUNT)[7]["y"])
        for index, optimizer in enumerate(self.optimizers()):
            loss = torch.nn.functional.mse_loss(self(batch["x"]), batch["y"])
            optimizer.zero_grad()
            self.manual_backward(loss * (float("nan") if is_bad and index == 1 else 1.0))
            optimizer.step()


@pytest.mark.parametrize("mode", ["skip", "replay"])
def test_steps_of_other_optimizers_before_the_spike_are_taken_back_too(mode):
    left_out = {6, 7} if mode == "skip" else {7}
    actual = run(make_batches(COUNT), [guard(Rollback(mode), snapshot_every=3)], model=SecondFails, epochs=1)
    assert_same(actual, run(without(make_batches(COUNT), left_out), model=SecondFails, epochs=1))


def test_the_momentum_is_zeroed_after_going_back():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                states = trainer.optimizers[0].state.values()
                seen.extend((state["exp_avg"].abs().sum().item(), state["exp_avg_sq"].sum().item()) for state in states)

    guarded = guard(Rollback(reset_momentum=True), snapshot_every=2)
    run(make_batches(COUNT, {5}), [guarded, Look()], epochs=1)
    assert seen
    assert all(first == 0.0 and second > 0.0 for first, second in seen)
    assert guarded.incidents[0].restored[-1] == "first moments zeroed"


# When it does not help


def test_a_run_that_keeps_failing_goes_back_further_each_time_and_ends_at_halt():
    from lightning_stable.guard import TrainingHalted

    guarded = guard(SkipStep(times=1), Rollback(times=3, escalate=2), snapshot_every=2, snapshots=4)
    with pytest.raises(TrainingHalted):
        run(make_batches(60, set(range(9, 60))), [guarded], epochs=1)
    told = [(one.response, one.steps_rolled_back, one.batches_passed_over) for one in guarded.incidents]
    assert told == [("SkipStep", 0, 0), ("Rollback", 1, 0), ("Rollback", 2, 2), ("Rollback", 4, 4), ("Halt", 0, 0)]


def test_the_default_ladder_escalates():
    from lightning_stable.guard import TrainingHalted

    guarded = SpikeGuard(snapshot_every=2, forgive_after=None)
    with pytest.raises(TrainingHalted):
        run(make_batches(40, set(range(9, 40))), [guarded], epochs=1)
    told = [(one.response, one.batches_passed_over) for one in guarded.incidents]
    skips, rollbacks = [("SkipStep", 0)] * 10, [("Rollback", 0), ("Rollback", 8)]
    assert told == [*skips, *rollbacks, ("ScaleLR", 0), ("ScaleLR", 0), ("Halt", 0)]


def test_a_spike_within_the_cooldown_is_for_the_next_rung():
    def told(cooldown, bad):
        ladder = [Rollback(mode="replay", times=9), SkipStep(times=9), Halt()]
        guarded = SpikeGuard(watch={}, ladder=ladder, snapshot_every=4, cooldown=cooldown, forgive_after=None)
        run(make_batches(COUNT, bad), [guarded], epochs=1)
        return [incident.response for incident in guarded.incidents]

    assert told(0, {3, 5}) == ["Rollback", "Rollback"]
    assert told(1, {3, 5}) == ["Rollback", "Rollback"]  # 4 was clean; the three that were replayed do not count
    assert told(2, {3, 5}) == ["Rollback", "SkipStep"]
    assert told(2, {3, 6}) == ["Rollback", "Rollback"]
