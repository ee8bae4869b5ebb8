# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.studies import recipes
from lightning_stable.studies.recipes import UnknownRecipe, find_recipe, list_parts, list_recipes, recipe_folder

HEADER = "# shows: a thing: two colons\n# needs: nothing\n#\n# More text.\n\nkey: 1 # takes: not the header\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "_recipes" / "optimizers").mkdir(parents=True)
    (tmp_path / "_recipes" / "optimizers" / "one.yaml").write_text(HEADER)
    (tmp_path / "_recipes" / "whole_run.yaml").write_text(HEADER)
    (tmp_path / "_recipes" / "bare_run.yaml").write_text("key: 1\n")
    monkeypatch.setattr(recipes, "files", lambda _: tmp_path)
    return tmp_path / "_recipes"


def test_an_installed_folder_comes_before_that_of_a_checkout(folder):
    assert recipe_folder() == folder


def test_the_header_is_read_and_only_the_header(folder):
    bare, whole = list_recipes()
    assert (whole.name, whole.shows, whole.needs) == ("whole_run", "a thing: two colons", "nothing")
    assert whole.takes == "not said"
    assert (bare.name, bare.shows, bare.needs, bare.takes) == ("bare_run", *("not said",) * 3)


def test_what_is_only_a_part_of_a_run_is_found_by_its_folder_and_name_and_not_listed(folder):
    assert find_recipe("optimizers/one").path == folder / "optimizers" / "one.yaml"
    assert [recipe.name for recipe in list_parts()] == ["optimizers/one"]


def test_a_wrong_name_gets_those_near_it_or_all(folder):
    with pytest.raises(UnknownRecipe, match=r"there is no recipe 'whole_ran'; did you mean whole_run or bare_run\?"):
        find_recipe("whole_ran")
    with pytest.raises(
        UnknownRecipe, match=r"there is no recipe 'xyz'; the recipes are bare_run, optimizers/one, whole"
    ):
        find_recipe("xyz")


def test_without_a_folder_both_places_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "files", lambda _: tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"No recipes in .*package/_recipes nor in .*recipes\."):
        recipe_folder()
