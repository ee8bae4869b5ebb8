# SPDX-License-Identifier: Apache-2.0
"""Text that every Python brings along: its documentation topics and the source of its standard library."""

import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from lightning_stable.testbeds.arguments import require_at_least
from lightning_stable.testbeds.corruption import Batch, Corruption
from lightning_stable.testbeds.data_plan import DataPlan, StreamLoader

# single files that Python 3.10 to 3.13 all have
_MODULES = """
argparse ast bdb calendar codecs configparser contextlib csv dataclasses difflib dis doctest enum fractions ftplib
functools gzip heapq imaplib inspect ipaddress mailbox optparse os pickle pickletools plistlib random shutil smtplib
socket statistics subprocess tarfile tempfile textwrap threading tokenize typing uuid weakref
""".split()  # noqa: SIM905 - forty names read better as words
_MOST_BYTES = 2_000_000
_TRAINING_SHARE = 0.9


class TextWindows:
    """The windows of a text, side by side: inputs and, one byte further on, targets.

    Args:
        text: The bytes, a one-dimensional uint8 tensor.
        context: Bytes of a window.

    Example:
        >>> windows = TextWindows(torch.arange(9, dtype=torch.uint8), context=4)
        >>> len(windows)
        2
        >>> batch = windows.batch([1])
        >>> batch["tokens"], batch["targets"]
        (tensor([[4, 5, 6, 7]]), tensor([[5, 6, 7, 8]]))
    """

    def __init__(self, text: torch.Tensor, context: int) -> None:
        self.text = text
        self.context = context

    def __len__(self) -> int:
        return max(0, len(self.text) - 1) // self.context

    def batch(self, samples: Sequence[int]) -> Batch:
        """Return the named windows, in their order.

        Example:
            >>> TextWindows(torch.arange(9, dtype=torch.uint8), context=4).batch([0, 1])["embedding_scale"]
            tensor([1., 1.])
        """
        starts = torch.tensor(samples)[:, None] * self.context
        window = self.text[starts + torch.arange(self.context + 1)].long()
        return {
            "tokens": window[:, :-1].contiguous(),
            "targets": window[:, 1:].contiguous(),
            "embedding_scale": torch.ones(len(samples)),
        }


class PythonTextDataModule(LightningDataModule):
    """Batches of bytes from Python's own documentation and source, or from a text of yours.

    Without `text_path` the text is `pydoc_data.topics` and modules of the standard library, about 2 MB in all. It
    differs a little between Python versions, so compare losses on one version only.
    The last tenth of every file is for validation and is never trained on.

    The order of training batches depends on `seed` and the epoch alone: not on `num_workers`, not on any global random
    number. A run resumed in the middle of an epoch goes on with the next batch.

    Args:
        text_path: A file, or a directory whose files are read in the order of their paths, hidden ones left out.
        context: Bytes of a sample.
        batch_size: Samples a batch.
        batches_per_epoch: Training batches an epoch, dropped ones included; by default what the text gives.
        val_batches: The most validation batches; their samples are the same every time, and spread over the text.
        num_workers: Processes that read; the batches are the same for any number.
        seed: Decides the order of the training data.
        corrupt: Corruptions of training batches; validation is never corrupted.
        drop: Training batches that the loader never holds, by their index over the whole stream (as in
            `Corruption(batches=...)`). All others stay as they are; epochs get shorter. Where that makes epochs of
            different lengths, use `Trainer(reload_dataloaders_every_n_epochs=1)`.

    Raises:
        ValueError: If an argument is out of bounds, or (in `setup`) the text is missing or too small.

    Example:
        >>> data = PythonTextDataModule(context=16, batch_size=4, batches_per_epoch=10, drop=[3])
        >>> data.setup("fit")
        >>> len(data.train_dataloader())
        9
        >>> next(iter(data.train_dataloader()))["tokens"].shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        text_path: str | None = None,
        context: int = 128,
        batch_size: int = 16,
        batches_per_epoch: int | None = None,
        val_batches: int = 20,
        num_workers: int = 0,
        seed: int = 0,
        corrupt: list[Corruption] | None = None,
        drop: list[int] | None = None,
    ) -> None:
        super().__init__()
        require_at_least("PythonTextDataModule", 1, context=context, val_batches=val_batches)
        self.text_path = text_path
        self.context = context
        self.val_batches = val_batches
        self.plan = DataPlan("PythonTextDataModule", batch_size, batches_per_epoch, num_workers, seed, corrupt, drop)
        self.train_text = self.val_text = torch.empty(0, dtype=torch.uint8)

    def setup(self, stage: str | None = None) -> None:
        """Read the text and split it."""
        if len(self.train_text):
            return
        files = _python_files() if self.text_path is None else _files_at(self.text_path)
        train, val = split_files(files)
        _require_enough("training", train, self.plan.batch_size * self.context + 1, self.text_path)
        _require_enough("validation", val, self.context + 1, self.text_path)
        self.train_text, self.val_text = train, val

    def train_dataloader(self) -> StreamLoader:
        """Return the training stream of this process."""
        self.setup("fit")
        return self.plan.training(TextWindows(self.train_text, self.context), self.trainer)

    def val_dataloader(self) -> StreamLoader:
        """Return the validation batches."""
        self.setup("validate")
        return self.plan.validation(TextWindows(self.val_text, self.context), self.val_batches)


def split_files(files: Iterable[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the last tenth off every file; return what is before, and the tenths, each as one uint8 tensor.

    Example:
        >>> train, val = split_files([b"0123456789", b"abcdefghij"])
        >>> bytes(train), bytes(val)
        (b'012345678abcdefghi', b'9j')
    """
    cuts = [(file, int(len(file) * _TRAINING_SHARE)) for file in files]
    train = bytearray(b"".join(file[:cut] for file, cut in cuts))
    val = bytearray(b"".join(file[cut:] for file, cut in cuts))
    return _as_tensor(train), _as_tensor(val)


def _require_enough(part: str, text: torch.Tensor, bytes_needed: int, text_path: str | None) -> None:
    if len(text) < bytes_needed:
        raise ValueError(
            f"`PythonTextDataModule(text_path=...)` must hold at least {bytes_needed} bytes for {part}, "
            f"got {len(text)} from {text_path or 'the standard library'!r}. "
            "Give more text (a tenth of it is for validation), or lower `batch_size` or `context`."
        )


def _as_tensor(text: bytearray) -> torch.Tensor:
    return torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _python_files() -> list[bytes]:
    from pydoc_data.topics import topics  # half a megabyte that nobody else needs

    library = Path(sysconfig.get_paths()["stdlib"])
    files = ["\n\n".join(topics[name] for name in sorted(topics)).encode()]
    files += [path.read_bytes() for name in _MODULES if (path := library / f"{name}.py").is_file()]
    room = _MOST_BYTES
    for i, file in enumerate(files):
        files[i] = file[:room]
        room -= len(files[i])
    return files


def _files_at(text_path: str) -> list[bytes]:
    root = Path(text_path)
    if root.is_file():
        return [root.read_bytes()]
    if not root.is_dir():
        raise ValueError(f"`PythonTextDataModule(text_path=...)` must be a file or a directory, got {text_path!r}.")
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths if not _is_hidden(path.relative_to(root))]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
