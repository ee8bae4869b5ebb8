# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch

from lightning_stable._lightning.safe_load import safe_load
from tests.faulty_runs import assert_same


def test_tensors_and_plain_types_come_back(tmp_path):
    saved = {"a": torch.arange(3), "b": [1, 2.5, "text", None, True], "c": {"deep": (1, 2)}}
    torch.save(saved, tmp_path / "file")
    assert_same(safe_load(tmp_path / "file"), saved)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_is_named_and_not_run(tmp_path):
    torch.save({"a": Hostile(tmp_path / "made")}, tmp_path / "file")
    with pytest.raises(ValueError, match=r"file cannot be loaded .*: it asks for `\w+\.mkdir`, and code in a file is"):
        safe_load(tmp_path / "file")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04torn"])
def test_a_damaged_file_is_called_damaged(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"file cannot be loaded with `weights_only=True`: it is damaged\.$"):
        safe_load(tmp_path / "file")


def test_a_file_that_is_not_there_is_the_systems_to_report(tmp_path):
    with pytest.raises(FileNotFoundError):
        safe_load(tmp_path / "file")
