# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.studies import recipes
from lightning_stable.studies.recipes import UnknownRecipe, find_recipe, list_recipes, recipe_folder

HEADER = "# shows: a thing: two colons\n# needs: nothing\n#\n# More text.\n\nkey: 1 # takes: not the header\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "_recipes" / "lm").mkdir(parents=True)
    (tmp_path / "_recipes" / "lm" / "deep_one.yaml").write_text(HEADER)
    (tmp_path / "_recipes" / "flat_one.yaml").write_text("key: 1\n")
    monkeypatch.setattr(recipes, "files", lambda _: tmp_path)
    return tmp_path / "_recipes"


def test_an_installed_folder_comes_before_that_of_a_checkout(folder):
    assert recipe_folder() == folder


def test_the_header_is_read_and_only_the_header(folder):
    deep, flat = list_recipes()[::-1] if list_recipes()[0].name == "flat_one" else list_recipes()
    assert (deep.name, deep.shows, deep.needs, deep.takes) == ("deep_one", "a thing: two colons", "nothing", "not said")
    assert (flat.shows, flat.needs, flat.takes) == ("not said",) * 3


def test_a_recipe_is_found_by_its_name_in_any_folder(folder):
    assert find_recipe("deep_one").path == folder / "lm" / "deep_one.yaml"


def test_a_wrong_name_gets_those_near_it_or_all(folder):
    with pytest.raises(UnknownRecipe, match=r"there is no recipe 'deep_on'; did you mean deep_one or flat_one\?"):
        find_recipe("deep_on")
    with pytest.raises(UnknownRecipe, match=r"there is no recipe 'xyz'; the recipes are .*deep_one"):
        find_recipe("xyz")


def test_without_a_folder_both_places_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "files", lambda _: tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"No recipes in .*package/_recipes nor in .*recipes\."):
        recipe_folder()
