# SPDX-License-Identifier: Apache-2.0
import argparse
import json

import pytest
import torch

from lightning_stable.bench.report import at_least_one, machine, new_file, write_json


def test_the_machine_is_named_with_its_versions_and_threads():
    assert torch.__version__ in machine(1)
    assert machine(1).endswith("1 CPU thread")
    assert machine(2, torch.device("cpu")).endswith("2 CPU threads")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_is_not_a_count_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1, got {text}"):
        at_least_one(text)


def test_a_file_that_could_not_be_written_is_refused_at_once(tmp_path):
    assert new_file(f"{tmp_path}/new.json") == tmp_path / "new.json"
    for bad in (tmp_path, tmp_path / "no" / "such.json"):
        with pytest.raises(argparse.ArgumentTypeError, match="a file in a folder that exists"):
            new_file(str(bad))


def test_json_is_written_whole_and_nothing_else_is_left(tmp_path):
    write_json(tmp_path / "numbers.json", {"ratio": 1.5})
    assert json.loads((tmp_path / "numbers.json").read_text()) == {"ratio": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]
