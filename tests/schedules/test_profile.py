# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest

import lightning_stable.schedules as room
from lightning_stable.schedules import REX, Cosine, OneCycle, Profile
from lightning_stable.schedules.profile import as_profile, progress, reached

KINDS = [kind for _, kind in inspect.getmembers(room, inspect.isclass) if issubclass(kind, Profile)]


class Own(Profile):
    def __init__(self, level: float = 0.5):
        self.level = level

    def factor(self, done: float, length: float) -> float:
        return self.level


def test_names_and_mappings_lead_to_profiles():
    assert repr(as_profile("Cosine")) == repr(Cosine())
    assert repr(as_profile("lightning_stable.schedules.Cosine")) == repr(Cosine())
    assert repr(as_profile({"class_path": "lightning_stable.schedules.REX", "init_args": {"beta": 0.7}})) == repr(
        REX(0.7)
    )
    assert repr(as_profile({"class_path": f"{__name__}.Own", "init_args": {"level": 0.1}})) == "Own(level=0.1)"
    assert as_profile({"class_path": "REX", "init_args": None}).beta == 0.5
    profile = Own()
    assert as_profile(profile) is profile


@pytest.mark.parametrize(
    "wrong",
    ["Cosin", "os.system", "no.such.Profile", "Profile", "torch.optim.SGD", "", ".", {"class_path": "Cosin"}],
    ids=str,
)
def test_what_is_no_profile_is_refused_and_the_message_lists_them(wrong):
    with pytest.raises(ValueError, match=r"`ProfileLR\(profile=\.\.\.\)` must be one of Cosine, Exponential, .*, got"):
        as_profile(wrong)


@pytest.mark.parametrize("wrong", [3, {}, {"init_args": {}}, {"class_path": "REX", "beta": 0.5}, ["REX"]], ids=str)
def test_what_is_no_name_either_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a profile, its name, or a mapping"):
        as_profile(wrong)


def test_it_says_how_it_was_made():
    assert repr(OneCycle()) == (
        "OneCycle(peak=0.3, start_ratio=0.04, end_ratio=4e-06, curve='cosine', three_phases=False, "
        "momentum_range=(0.85, 0.95))"
    )


def test_progress_stays_within_the_run():
    assert [progress(done, 4) for done in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]
    assert progress(0, 0) == 1.0


def test_a_fraction_of_a_whole_number_is_reached_in_its_step():
    for total in (7, 10, 100, 1000):
        for step in range(1, total):
            assert reached(step, total, step / total)
            assert not reached(step - 1, total, step / total)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not inspect.isabstract(kind)], ids=lambda kind: kind.__name__
)
def test_where_there_is_no_end_every_profile_begins_all_the_same(kind):
    assert kind().factor(0, float("inf")) == kind().factor(0, 100)
