# SPDX-License-Identifier: Apache-2.0
"""The bundled recipes: where they lie, what each says of itself, and the one that a name means.

A recipe is a YAML for LightningCLI whose first lines are comments of the form `# key: text`:

    # shows: what can be seen in this run
    # needs: what must be installed
    # takes: about how long
"""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

_FACTS = ("shows", "needs", "takes")


class UnknownRecipe(LookupError):
    """No bundled recipe has that name.

    Example:
        >>> str(UnknownRecipe("there is no recipe 'x'"))
        "there is no recipe 'x'"
    """


@dataclass(frozen=True)
class Recipe:
    """A bundled recipe and what its header says.

    Args:
        name: The name it is started by, its file's path among the recipes.
        path: The YAML file.
        shows: What can be seen in the run.
        needs: What must be installed.
        takes: About how long it takes.

    Example:
        >>> Recipe("tiny", Path("tiny.yaml"), "nothing", "core", "1 min").name
        'tiny'
    """

    name: str
    path: Path
    shows: str
    needs: str
    takes: str


def recipe_folder() -> Path:
    """The folder of the recipes: inside an installed package, or next to the package in a checkout.

    Raises:
        FileNotFoundError: If neither exists.

    Example:
        >>> recipe_folder().is_dir()
        True
    """
    package = Path(str(files("lightning_stable")))
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"No recipes in {package / '_recipes'} nor in {package.parent / 'recipes'}.")


def list_recipes() -> list[Recipe]:
    """All bundled recipes by name.

    Example:
        >>> "charlm_stable" in [recipe.name for recipe in list_recipes()]
        True
    """
    return [_read(path) for path in sorted(recipe_folder().glob("*.yaml"))]


def list_parts() -> list[Recipe]:
    """What changes a part of a recipe, such as its optimizer, and stands behind it: `--recipe NAME --recipe PART`.

    Example:
        >>> "optimizers/lion" in [part.name for part in list_parts()]
        True
    """
    return [_read(path) for path in sorted(recipe_folder().glob("*/*.yaml"))]


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Args:
        name: As `lightning-stable list` prints it; `optimizers/lion` for the optimizer alone.

    Raises:
        UnknownRecipe: If there is none; the message names those that are near.

    Example:
        >>> find_recipe("charlm_stable").path.name
        'charlm_stable.yaml'
    """
    recipes = {recipe.name: recipe for recipe in sorted([*list_recipes(), *list_parts()], key=lambda one: one.name)}
    if name in recipes:
        return recipes[name]
    near = get_close_matches(name, recipes, n=3, cutoff=0.4)
    advice = f"did you mean {' or '.join(near)}?" if near else f"the recipes are {', '.join(recipes)}."
    raise UnknownRecipe(f"there is no recipe {name!r}; {advice}")


def _read(path: Path) -> Recipe:
    """Read the header, the comment lines before the first line that is none."""
    facts = dict.fromkeys(_FACTS, "not said")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, colon, text = line.lstrip("# ").partition(":")
        if colon and key in facts:
            facts[key] = text.strip()
    return Recipe(path.relative_to(recipe_folder()).with_suffix("").as_posix(), path, **facts)
