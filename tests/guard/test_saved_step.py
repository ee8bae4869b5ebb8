# SPDX-License-Identifier: Apache-2.0
"""What `SaveBatch` leaves on the disk can be read, looked at, and run again."""

import dataclasses
import json
import math
import subprocess
import sys
from collections import UserDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_stable.guard import SaveBatch, SavedStep, SkipStep
from lightning_stable.guard.saved_step import _described
from lightning_stable.snapshots.random_state import RandomState
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, guard

ROOT = Path(__file__).parents[2]


def saved(folder, bad=5, how="huge", **arguments):
    guarded = guard(SaveBatch(), SkipStep(times=9))
    run(make_batches(COUNT, {bad}, how=how), [guarded], default_root_dir=folder, epochs=1, **arguments)
    (incident,) = guarded.incidents
    return folder / "spikes" / f"step{incident.step:08d}.pt", incident


def test_it_holds_the_batches_and_what_was_known_of_the_spike(tmp_path):
    path, incident = saved(tmp_path, bad=6, accumulate_grad_batches=2)
    step = SavedStep(str(path))
    assert_same(step.batches, make_batches(COUNT, {6}, how="huge")[6:8])
    assert step.info["batch_indices"] == [6, 7]
    assert (step.info["global_step"], step.info["epoch"], step.info["signal"]) == (3, 0, incident.signal)
    assert step.info["value"] == incident.value
    assert step.info["readings"][incident.signal] == incident.value
    assert step.info["left_out"] == []
    assert incident.notes == [f"batch saved to {path}"]


def test_a_person_can_read_it(tmp_path):
    path, _ = saved(tmp_path, how="nan")
    text = json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert text["batches"] == ["batch['x']: (4, 8) float32, 32 not finite", "batch['y']: " + text["batches"][1][12:]]
    assert text["batches"][1].endswith(", 0 not finite")
    assert text["batch_indices"] == [5]
    assert text["value"] == "nan"
    lines = str(SavedStep(str(path))).splitlines()
    assert "signal: grad_norm" in lines
    assert text["batches"] == lines[-2:]


class Look(Callback):
    """Weights and loss of the step that will spike."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 5:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


def test_run_again_with_its_weights_it_has_the_same_loss_and_norm(tmp_path):
    look = Look()
    guarded = guard(SaveBatch(), SkipStep())
    batches = make_batches(COUNT, {5}, how="huge")
    run(batches, [guarded, look], default_root_dir=tmp_path, epochs=1)
    module = Net()
    module.load_state_dict(look.weights)
    step = SavedStep(str(tmp_path / "spikes" / "step00000005.pt"))
    before = RandomState().state_dict()
    result = step.repeat(module)
    assert_same(RandomState().state_dict(), before)
    assert result["losses"] == [step.info["readings"]["loss"]]
    assert result["grad_norm"] == step.info["readings"]["grad_norm"]


def test_its_command_runs_it_again(tmp_path):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    guarded = guard(SaveBatch(), SkipStep())
    batches = make_batches(COUNT, {5}, how="huge")
    run(batches, [guarded, checkpoint], default_root_dir=tmp_path, epochs=1, enable_checkpointing=True)
    step = SavedStep(str(tmp_path / "spikes" / "step00000005.pt"))
    command = json.loads((tmp_path / "spikes" / "step00000005.json").read_text())["repeat"]
    command = command.replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    readings = step.info["readings"]  # the newest checkpoint holds the very weights
    assert done.stdout == f"{{'losses': [{readings['loss']}], 'grad_norm': {readings['grad_norm']}}}\n"


def test_without_a_checkpoint_its_command_shows_it(tmp_path):
    path, _ = saved(tmp_path)
    command = json.loads(path.with_suffix(".json").read_text())["repeat"]
    done = subprocess.run(
        command.replace("python ", f"{sys.executable} ", 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{SavedStep(str(path))}\n"


def test_an_import_path_needs_a_checkpoint(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(ValueError, match=r"`SavedStep.repeat\(checkpoint=...\)` must be given"):
        SavedStep(str(path)).repeat("tests.faulty_runs.Net")


# Batches of any kind

Pair = namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    name: str


class Graph:
    """Has tensors, as a batch of a graph library has."""

    def __init__(self, x):
        self.x, self.parts, self.label = x, [x + 1], object()


class Opaque:
    pass


class Strange(Dataset):
    """The usual batches, and beside them whatever a person may put in."""

    def __init__(self, batches, extra):
        self.batches, self.extra = batches, extra

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        batch = {key: value.clone() for key, value in self.batches[index].items()}
        return {**batch, "extra": self.extra} if len(self) == COUNT else batch


ONES = torch.ones(2, 3)
EXTRAS = {
    "containers": (
        [1, (2.5, "text", None), {"deep": [True, ONES]}],
        [1, (2.5, "text", None), {"deep": [True, ONES]}],
        [],
    ),
    "named tuple": (Pair(ONES, 2), (ONES, 2), []),
    "mapping": (UserDict(a=ONES), {"a": ONES}, []),
    "array": (np.arange(3), torch.arange(3), []),
    "number of numpy": (np.float32(2.5), torch.tensor(2.5), []),
    "view": (torch.arange(1000.0)[3:5], torch.tensor([3.0, 4.0]), []),
    "dataclass": (Record(ONES, "a"), {"x": ONES, "name": "a"}, ["Record"]),
    "object": (Graph(ONES), {"x": ONES, "parts": [ONES + 1]}, ["Graph"]),
    "opaque": (Opaque(), {}, ["Opaque"]),
    "array of objects": (np.array(["a", None], dtype=object), {}, ["ndarray"]),
    "bytes": (b"abc", {}, ["bytes"]),
    "a key of its own kind": ({(1, 2): ONES, "a": ONES}, {"a": ONES}, None),
    "parameter": (torch.nn.Parameter(ONES.clone()), ONES, []),
}


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
@pytest.mark.parametrize("kind", EXTRAS)
def test_what_can_be_loaded_safely_is_saved_and_the_rest_is_named(tmp_path, monkeypatch, kind):
    extra, expected, lost = EXTRAS[kind]

    def loader(dataset, **arguments):
        return DataLoader(Strange(dataset.batches, extra), batch_size=None, collate_fn=lambda batch: batch)

    monkeypatch.setattr("tests.faulty_runs.DataLoader", loader)
    path, incident = saved(tmp_path)
    step = SavedStep(str(path))
    assert_same(step.batches[0]["extra"], expected)
    assert type(step.batches[0]["extra"]) is type(expected)
    names = ["batch 5['extra'][(1, 2)] (its key)"] if lost is None else [f"batch 5['extra'] ({name})" for name in lost]
    assert step.info["left_out"] == names
    assert incident.notes[1:] == [f"not saved as it was: {name}" for name in names]
    assert path.stat().st_size < 100_000
    assert math.isfinite(step.info["value"])


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
def test_a_batch_that_cannot_be_written_at_all_does_not_end_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise RecursionError("no end")

    monkeypatch.setattr("lightning_stable.guard.saved_step._plain", fail)
    guarded = guard(SaveBatch(), SkipStep())
    with pytest.warns(UserWarning, match=r"cannot write .* \(RecursionError: no end\). The run goes on"):
        run(make_batches(COUNT, {5}), [guarded], default_root_dir=tmp_path, epochs=1)
    assert guarded.incidents[0].notes[1:] == ["batch not saved: RecursionError: no end"]
    assert guarded.incidents[0].notes[0].startswith("193 gradient entries are not finite")


def test_a_sparse_tensor_is_described_by_its_shape():
    indices = torch.tensor([[0, 1]])
    sparse = torch.sparse_coo_tensor(indices, torch.ones(2), (3,), check_invariants=False).coalesce()
    assert _described({"a": sparse}) == ["batch['a']: (3,) float32"]
