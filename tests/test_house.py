# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no linter knows."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_stable
from lightning_stable.studies.techniques import BEGIN, END, list_techniques, techniques_table

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_stable"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
LOWER_FLOORS = ("functional", "parameters", "optim", "transforms", "schedules", "detectors", "nn")

# Modules whose test has another name. This list may only shrink.
TESTED_ELSEWHERE = {
    "lightning_stable/detectors/detector.py": "tests/contracts/test_detectors.py",
}
WRITES = {"write_text", "write_bytes", "savefig", "savez", "savez_compressed"}
OPENS = {"open", "fdopen"}
ABOUT_NO_SINGLE_MODULE = ("chaos", "contracts", "distributed", "integration")


def short(path):
    return path.relative_to(ROOT).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def public_things():
    """Every class and function that a room exports, as (its import path, the thing)."""
    for technique in list_techniques():
        name = f"lightning_stable.{technique.room}"
        yield pytest.param(getattr(importlib.import_module(name), technique.name), id=f"{name}.{technique.name}")


def arguments_of(thing):
    if inspect.isclass(thing) and thing.__init__ is object.__init__:
        return {}
    return inspect.signature(thing).parameters


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)


every_source = pytest.mark.parametrize("path", SOURCES, ids=short)
every_module = pytest.mark.parametrize("path", MODULES, ids=short)
every_room = pytest.mark.parametrize("room", ROOMS, ids=short)
every_public_thing = pytest.mark.parametrize("thing", list(public_things()))


# Files


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=short)
def test_every_module_has_its_test_at_the_same_place(path):
    folder = "/".join(["tests", *(part.lstrip("_") for part in path.parent.relative_to(PACKAGE).parts)])
    expected = TESTED_ELSEWHERE.get(short(path), f"{folder}/test_{path.stem}.py")
    assert (ROOT / expected).is_file(), f"{short(path)} has no {expected}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*/**/test_*.py")), ids=short)
def test_every_test_of_a_room_has_its_module(path):
    folder, stem = path.parent.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
    candidates = [PACKAGE / folder / f"{stem}.py", PACKAGE / f"_{folder}" / f"{stem}.py"]
    assert folder.parts[0] in ABOUT_NO_SINGLE_MODULE or any(candidate.is_file() for candidate in candidates)


@every_source
def test_a_file_names_its_licence_and_stays_below_400_lines(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert len(lines) <= 400


@every_source
def test_a_file_is_named_after_what_it_holds(path):
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "base", "misc", "tools")


@every_room
def test_a_room_is_small_enough_to_know_by_heart(room):
    assert len(list(room.glob("*.py"))) <= 20


def test_the_top_level_is_that_of_the_house():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    # what was unpacked and not cloned has nothing in it that is not part of the project
    paths = listed.stdout.split("\0") if listed.returncode == 0 else [path.name for path in ROOT.iterdir()]
    top = {path.split("/")[0] for path in paths if path and not path.startswith(".")}
    assert top == {
        *("lightning_stable", "notebooks", "recipes", "tests"),
        *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
    }


def test_no_file_knows_the_machine_it_was_written_on():
    homes = re.compile("|".join(f"/{folder}/" for folder in ("home", "Users", "root", "work", "opt")))
    folders = (PACKAGE, ROOT / "recipes", ROOT / "tests", ROOT / "notebooks")
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [path for path in files if path.suffix in (".py", ".yaml", ".toml", ".md", ".ipynb", ".txt")]
    found = [
        f"{short(path)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if homes.search(line)
    ]
    assert not found


# Imports


@pytest.mark.parametrize("room", LOWER_FLOORS)
def test_the_lower_floors_work_where_lightning_is_not_installed(room):
    block = "import sys; sys.modules.update(dict.fromkeys(('lightning', 'pytorch_lightning', 'lightning_fabric')))"
    done = run_python(f"{block}; import lightning_stable.{room} as room; [getattr(room, name) for name in dir(room)]")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_else():
    done = run_python(
        "import sys, lightning_stable; dir(lightning_stable); print({'torch', 'lightning'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr


def test_every_headline_name_is_there():
    assert all(getattr(lightning_stable, name) for name in lightning_stable.__all__)
    assert set(lightning_stable.__all__) <= set(dir(lightning_stable))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'SpikeGard'"):
        _ = lightning_stable.SpikeGard


@every_module
def test_private_attributes_of_lightning_are_touched_in_one_room_only(path):
    """Of what comes from Lightning, our code holds trainers, modules and loops; it gets at them by these names."""
    if "_lightning" in path.parts:
        return
    owners = {"trainer", "pl_module", "fit_loop", "epoch_loop", "lightning_module", "strategy", "logger"}
    touched = [
        ast.unparse(node)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if re.split(r"\W+", ast.unparse(node.value))[-1].lstrip("_") in owners
    ]
    assert not touched


@every_module
def test_nothing_is_unpickled_that_a_user_did_not_write(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(names)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = [keyword for keyword in node.keywords if keyword.arg == "weights_only"]
            assert len(safe) == 1
            assert ast.unparse(safe[0].value) == "True"


@every_module
def test_files_are_written_to_another_name_and_renamed(path):
    """Whoever reads a file of ours finds the old one or the new one, whenever we are killed."""
    for function in (node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)):
        nodes = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        calls = [(ast.unparse(node.func).rpartition("."), node) for node in nodes]
        writes = [name for (_, _, name), node in calls if name in WRITES or (name in OPENS and _to_write(node))]
        writes += [f"{owner}.save" for (owner, _, name), _ in calls if (owner, name) == ("torch", "save")]
        renames = any(
            name == "write_atomically" or (name == "replace" and len(node.args) == 1)  # of a path, and not of a text
            for (_, _, name), node in calls
        )
        assert not writes or renames, f"`{function.name}` writes in place: {writes}"


def _to_write(call):
    """Whether `open` has a mode that writes."""
    texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(re.fullmatch(r"[rbt+]*[wax][rbt+]*", text) for text in texts)


# Classes and functions


@every_public_thing
def test_no_concrete_class_of_ours_inherits_another(thing):
    if not inspect.isclass(thing):
        return
    parents = [parent for parent in thing.__mro__[1:] if parent.__module__.startswith("lightning_stable")]
    assert all(inspect.isabstract(parent) for parent in parents), f"wrap {parents} instead"


@every_public_thing
def test_a_docstring_has_an_example_and_names_every_argument(thing):
    doc = inspect.getdoc(thing) or ""
    assert "Example:" in doc
    assert ">>>" in doc
    described = doc.partition("Args:")[2]
    for name in arguments_of(thing):
        assert re.search(rf"^\s+\*{{0,2}}{name}: ", described, re.MULTILINE), f"`Args:` does not say what {name} is"


@every_public_thing
def test_a_class_can_be_built_from_yaml(thing):
    if not inspect.isclass(thing) or inspect.isabstract(thing):
        return
    for name, parameter in arguments_of(thing).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        assert parameter.annotation is not parameter.empty, f"{name} has no type"
        assert "Callable" not in str(parameter.annotation), f"{name} is a function, which YAML has no word for"


# Papers


def test_the_table_in_the_readme_is_current():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == techniques_table(), "run `make docs`"


def test_the_changelog_names_everything_that_is_exported():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    abstract = {"Detector", "Monitor", "Response", "Verdict", "Incident", "TrainingHalted"}  # what the others stand on
    missing = {technique.name for technique in list_techniques()} - abstract - set(re.findall(r"`(\w+)`", changelog))
    assert not missing
