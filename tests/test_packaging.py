# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it works where the checkout is not."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import lightning_stable

ROOT = Path(__file__).parents[1]


def run(*command, cwd, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PL_", "PIP_"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by hatchling from the checkout, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    """A new environment that holds the wheel alone, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ("install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # a path in a .pth file is added after the environment's own, and .pth files found there (an editable install of
    # this package is one) are not read
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return folder, python, site


def test_the_wheel_holds_package_recipes_types_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {
        f"lightning_stable/_recipes/{path.relative_to(ROOT / 'recipes')}" for path in ROOT.glob("recipes/*.yaml")
    }
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("lightning_stable/**/*.py")}
    assert recipes
    assert recipes | modules <= names
    assert "lightning_stable/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel):
    for name in zipfile.ZipFile(wheel).namelist():
        assert name.startswith(("lightning_stable/", f"lightning_stable-{lightning_stable.__version__}.dist-info/"))
        assert name.endswith((".py", ".yaml", "py.typed")) or ".dist-info/" in name
        assert "__pycache__" not in name


def test_the_installed_metadata_has_the_version_and_the_console_script():
    assert metadata("lightning-stable")["Version"] == lightning_stable.__version__
    assert f'\nversion = "{lightning_stable.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    (script,) = entry_points(group="console_scripts", name="lightning-stable")
    assert script.value == "lightning_stable.cli:main"
    assert callable(script.load())
    assert {"recipes", "test", "dev"} <= set(metadata("lightning-stable").get_all("Provides-Extra"))


def test_the_installed_package_is_that_of_the_wheel_and_lists_its_recipes(venv, tmp_path):
    folder, python, site = venv
    where = "import lightning_stable; print(lightning_stable.__file__)"
    assert Path(run(python, "-c", where, cwd=tmp_path).strip()) == site / "lightning_stable" / "__init__.py"
    where = "from lightning_stable.studies.recipes import recipe_folder; print(recipe_folder())"
    assert Path(run(python, "-c", where, cwd=tmp_path).strip()) == site / "lightning_stable" / "_recipes"
    listed = run(python.with_name("lightning-stable"), "list", cwd=tmp_path)
    assert all(f"{path.stem} " in listed for path in ROOT.glob("recipes/*.yaml"))
    assert ROOT not in folder.parents


def test_a_recipe_runs_from_the_wheel_in_another_folder(venv, tmp_path):
    _, python, _ = venv
    run(python.with_name("lightning-stable"), "fit", "--recipe", "charlm_stable", "--trainer.max_steps=5", cwd=tmp_path)
    logs = tmp_path / "runs" / "charlm_stable" / "version_0"
    assert (logs / "config.yaml").is_file()
    assert list(logs.glob("events.out.tfevents.*"))
    told = run(python.with_name("lightning-stable"), "report", logs, cwd=tmp_path)
    assert "No incidents in 5 optimizer steps" in told
    assert (logs / "report.png").is_file()
