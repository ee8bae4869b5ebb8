# SPDX-License-Identifier: Apache-2.0
"""Chaotic runs that are ended from outside at some step, and go on from their last checkpoint."""

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable.testing import InjectFault
from tests.chaos.chaotic_runs import BATCHES, EPOCHS, LADDERS, PRECISIONS, SNAPSHOT_EVERY, steps_of_an_epoch
from tests.chaos.test_schedules import SETTINGS, schedule_of
from tests.faulty_runs import assert_same, make_batches, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_spike_guard import guard


def setting_of(seed):
    """Ladder, precision and accumulation.

    As in `test_schedules.resume_somewhere`: only skips, and replays without transient faults, can be expected to go the
    same way after a resume.
    """
    _, precision, accumulate = SETTINGS[(seed * 7) % len(SETTINGS)]
    return "replay" if seed % 2 == 0 and seed % 5 else "skip", precision, accumulate


def train(seed, folder, callbacks=(), setting=None, **arguments):
    """The incidents, in words, and the end of a run; in `folder` is what it leaves behind."""
    ladder, precision, accumulate = setting or setting_of(seed)
    guarded = guard(*LADDERS[ladder](), snapshot_every=SNAPSHOT_EVERY, forgive_after=5)
    arguments |= {"accumulate_grad_batches": accumulate, "epochs": EPOCHS, **PRECISIONS[precision]()}
    callbacks = [guarded, *schedule_of(seed, precision, accumulate), *callbacks]
    outcome = run(make_batches(BATCHES), callbacks, shuffle=True, default_root_dir=folder, **arguments)
    incidents = [str(incident) for incident in guarded.incidents]
    written = [json.loads(line) for line in _lines(folder / "incidents.jsonl")]
    assert [line["step"] for line in written] == [incident.step for incident in guarded.incidents]
    return [line.partition(": ")[2] if ladder == "replay" else line for line in incidents], comparable(outcome)


def last_checkpoint(seed, folder):
    """Saves `last.ckpt` every one to five steps."""
    return ModelCheckpoint(
        dirpath=folder, filename="best", save_last=True, every_n_train_steps=1 + seed % 5, enable_version_counter=False
    )


def step_of(seed):
    """When the end comes: once there is a checkpoint, and before the last step."""
    _, _, accumulate = setting_of(seed)
    return random.Random(seed).randrange(1 + seed % 5, EPOCHS * steps_of_an_epoch(accumulate) - 1)


def interrupted(seed, folder, kind):
    """Train until a signal comes."""
    fault = InjectFault(kind, step=step_of(seed))
    train(seed, folder, [fault, last_checkpoint(seed, folder)], enable_checkpointing=True)


def saved_when_terminated(seed, folder, setting):
    """Train until SIGTERM comes, within a window if there is accumulation, and save there and nowhere else.

    Not in an epoch's first window: Lightning resumes an epoch that has begun without a batch with another order.
    """
    an_epoch = steps_of_an_epoch(setting[2])
    at = random.Random(seed).choice([step for step in range(EPOCHS * an_epoch - 1) if step % an_epoch])
    saved = ModelCheckpoint(
        dirpath=folder, filename="best", save_last=True, every_n_epochs=EPOCHS, save_on_exception=True
    )
    callbacks = [InjectFault("terminate", step=at), saved]
    train(seed, folder, callbacks, setting, enable_checkpointing=True)


class NoMoreSpace(Callback):
    """From a step on, the process dies in the first write of a file beyond some size, at that very byte."""

    def __init__(self, seed):
        self.step, self.size = step_of(seed), random.Random(seed).randrange(1, 8000)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx + BATCHES * trainer.current_epoch >= self.step:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would ignore it, and raise an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def torn_in_a_write(seed, folder):
    """Train until a file is written only in part."""
    train(seed, folder, [NoMoreSpace(seed), last_checkpoint(seed, folder)], enable_checkpointing=True)


def torn_before_the_name(seed, folder):
    """Train until a file is written, and has not got its name: that of the incidents, or else the fourth checkpoint."""
    left = {"incidents.jsonl": 1 if seed % 2 else -1, "last.ckpt": 4}

    def kill(event, arguments):
        name = Path(str(arguments[1])).name if event == "os.rename" else ""
        if name in left:
            left[name] -= 1
            if not left[name]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    train(seed, folder, [last_checkpoint(seed, folder)], enable_checkpointing=True)


WAYS = {
    "killed": (lambda seed, folder: interrupted(seed, folder, "kill"), signal.SIGKILL),
    "torn in a write": (torn_in_a_write, signal.SIGXFSZ),
    "torn before the name": (torn_before_the_name, signal.SIGKILL),
}


def die(seeds, folder):
    """In one process for all, since to start one takes seconds: a child for each seed and way, which dies."""
    for way, (end, expected) in WAYS.items():
        for seed in seeds:
            own = folder / way / str(seed)
            own.mkdir(parents=True)
            child = os.fork()
            if not child:
                try:
                    end(seed, own)
                finally:
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            (own / "status").write_text(f"{status == -expected} {status}")


def assert_it_is_as_if_nothing_had_been(seed, left, folder, setting=None):
    """Go on from what is `left`, in a new folder."""
    look_at_what_is_left(left)
    (folder / "whole").mkdir()
    (folder / "resumed").mkdir()
    expected = train(seed, folder / "whole", setting=setting)
    checkpoint = left / "last.ckpt"
    path = checkpoint if checkpoint.exists() else None
    actual = train(seed, folder / "resumed", setting=setting, ckpt_path=path)
    assert_same(actual, expected)


def look_at_what_is_left(folder):
    """Whatever there is, is whole: incidents are lines of JSON, and the checkpoint is finite."""
    for line in _lines(folder / "incidents.jsonl"):
        assert "response" in json.loads(line)
    if (folder / "last.ckpt").exists():
        checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
        for weight in checkpoint["state_dict"].values():
            assert weight.isfinite().all()


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []
