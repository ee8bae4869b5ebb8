# SPDX-License-Identifier: Apache-2.0
"""Where a study's table may go."""

import tempfile
from pathlib import Path

import pytest

from lightning_stable.studies.engine.out_folder import OutRefused, make_folder, require_own
from tests.studies.engine.toy_study import ToyStudy

TOY = ToyStudy()


def table(folder, command, name="toy"):
    made = f"# Study `{name}`\n\nA question?\n\nEqual tuning budget: x. Made by `{command}`.\n"
    (folder / "table.md").write_text(made)


def test_a_folder_is_made_and_left_empty(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux")
@pytest.mark.parametrize("parent", ["/proc", "/sys"])
def test_where_no_folder_can_be_made_it_is_out_that_is_named(parent):
    with pytest.raises(OutRefused, match=rf"`--out` must be a folder that can be written to: {parent}/xx: "):
        make_folder(Path(parent, "xx"))


def test_a_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutRefused, match=r"`--out` .* written to: .*: Permission denied"):
        make_folder(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "lightning-stable study toy",
        "lightning-stable study toy --seeds 0,1,2",
        "lightning-stable study toy --seeds 2,0",
    ],
)
def test_the_same_again_and_more_seeds_go_on(tmp_path, command):
    table(tmp_path, command)
    require_own(tmp_path, TOY, quick=False, seeds=(0, 1, 2))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("lightning-stable study budget", "budget"),
        ("lightning-stable study toy --quick", "toy"),
        ("lightning-stable study toy --seeds 0,1,2,3", "toy"),
        ("lightning-stable study toy --seeds 7", "toy"),
        ("make", "toy"),
    ],
)
def test_what_others_have_made_is_not_replaced(tmp_path, command, name):
    table(tmp_path, command, name)
    with pytest.raises(OutRefused, match=r"`--out` must be .*table\.md is of .*Choose another `--out`"):
        require_own(tmp_path, TOY, quick=False, seeds=(0, 1, 2))


def test_a_table_that_no_study_made_is_not_replaced(tmp_path):
    (tmp_path / "table.md").write_text("my notes")
    with pytest.raises(OutRefused, match="something else"):
        require_own(tmp_path, TOY, quick=False, seeds=(0,))


def test_the_seeds_of_a_quick_study_are_its_own(tmp_path):
    table(tmp_path, "lightning-stable study toy --quick")
    require_own(tmp_path, TOY, quick=True, seeds=(0, 1))
    with pytest.raises(OutRefused, match="fewer seeds"):
        require_own(tmp_path, TOY, quick=True, seeds=(1,))
