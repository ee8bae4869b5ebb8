# SPDX-License-Identifier: Apache-2.0
import struct

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from lightning_stable.studies.event_files import DamagedEvents, read_event_scalars
from lightning_stable.studies.run_log import NoRun, read_run


def record(data: bytes, length=None):
    """A record of an event file whose checksums are right."""
    head = struct.pack("<Q", len(data) if length is None else length)
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


def numbers(folder, tag, **settings):
    return [(each.step, each.value) for each in read_event_scalars(folder, **settings)[tag]]


def test_scalars_stay_in_the_order_of_writing(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step, value in ((0, 4.0), (1, 3.0), (2, 2.0), (1, 2.5)):
            writer.add_scalar("loss", value, step)
            writer.add_scalar("a/lr", 1.0, step)
    assert list(read_event_scalars(tmp_path)) == ["a/lr", "loss"]
    assert numbers(tmp_path, "loss") == [(0, 4.0), (1, 3.0), (2, 2.0), (1, 2.5)]


def test_what_lightnings_logger_writes_is_read(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    logger.log_metrics({"train_loss": torch.tensor(2.5).item()}, step=7)
    logger.finalize("success")
    assert numbers(tmp_path, "train_loss") == [(7, 2.5)]


def test_scalars_of_the_newer_kind_are_read_and_other_tensors_are_not(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(30):
            writer.add_scalar("loss", 0.1 * step, step, new_style=True, double_precision=True)
        writer.add_text("note", "a text is a tensor, too")
    assert list(read_event_scalars(tmp_path)) == ["loss"]
    assert numbers(tmp_path, "loss") == [(step, 0.1 * step) for step in range(30)]


def test_what_a_writer_declared_void_can_be_kept(tmp_path):
    for purge, steps in ((None, (0, 1, 2, 3)), (2, (2, 3))):
        with SummaryWriter(tmp_path, purge_step=purge, filename_suffix=f".{purge}") as writer:
            for step in steps:
                writer.add_scalar("loss", 9.0 if purge else 1.0, step)
    files = sorted(tmp_path.iterdir(), key=lambda path: path.name.endswith("2"))
    kept = [pair for file in files for pair in numbers(file, "loss", keep_orphans=True)]
    assert kept == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (2, 9.0), (3, 9.0)]


def test_a_record_that_was_cut_off_ends_the_file(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1.0, step)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert len(numbers(tmp_path, "loss")) == 9


@pytest.mark.parametrize(
    "content", [record(b"\xff\xff\xff no event"), record(b"", length=2**62)], ids=["no event", "absurd length"]
)
def test_damage_is_an_error_with_the_file_also_for_the_report(tmp_path, content):
    (tmp_path / "events.out.tfevents.1").write_bytes(content)
    with pytest.raises(DamagedEvents, match=r"damaged, or no event file"):
        read_event_scalars(tmp_path)
    with pytest.raises(NoRun, match=r"damaged, or no event file"):
        read_run(tmp_path)


def test_noise_has_no_scalars(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(bytes(range(256)) * 20)
    assert read_event_scalars(tmp_path) == {}
