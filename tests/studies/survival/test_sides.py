# SPDX-License-Identifier: Apache-2.0
from lightning_stable.studies.survival.parts import BUILDERS
from lightning_stable.studies.survival.sides import SIDES


def test_every_side_in_words_can_be_built_and_the_other_way_round():
    assert list(SIDES) == list(BUILDERS)


def test_names_and_titles_are_all_different():
    assert all(name == side.name for name, side in SIDES.items())
    assert len({side.title for side in SIDES.values()}) == len(SIDES)
