# SPDX-License-Identifier: Apache-2.0
import os
import stat

import pytest

from lightning_stable import files
from lightning_stable.files import write_atomically


def test_the_content_is_replaced_and_the_mode_is_kept(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    os.chmod(path, 0o600)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_last_good_file_and_no_litter(tmp_path, monkeypatch):
    write_atomically(tmp_path / "incidents.jsonl", b"good\n")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "incidents.jsonl", b"lost\n")
    assert [path.name for path in tmp_path.iterdir()] == ["incidents.jsonl"]
    assert (tmp_path / "incidents.jsonl").read_text() == "good\n"
