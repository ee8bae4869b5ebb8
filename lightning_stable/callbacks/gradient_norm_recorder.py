# SPDX-License-Identifier: Apache-2.0
"""Record the gradient norms of a pilot run, of which the next run's schedule is made."""

import json
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import SGD, Optimizer

from lightning_stable._lightning.trainer import gradient_scale
from lightning_stable.files import write_atomically
from lightning_stable.functional.tensor_norms import tensor_norms

FILE_NAME = "gradient_norms.json"
_MOST_VALUES = 2048
_MOST_WAITING = 1024  # norms that are on the device; few enough to take no memory, enough that waiting is rare
_Norm = Literal["l2", "l1"]


class GradientNormRecorder(Callback):
    """Records the norm of the gradient in every optimizer step and writes `gradient_norms.json`, for `refine`.

        l2 = sqrt(sum_i g_i^2)   for SGD,        l1 = sum_i |g_i|   for Adam and other methods of signs

    Paper: Defazio, Cutkosky, Mehta and Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by
    Refinement" (2023).

    Deviations: at most 2,048 values are kept: when there are more, each two neighbours become their mean.

    Norms are those of the whole accumulated gradient, before clipping and without the scale of a gradient scaler. What
    is not finite is not recorded, and a step that `SpikeGuard` undoes is forgotten. A resumed run goes on recording.
    Then `lightning-stable refine RUN_DIR` makes the schedule, and `schedules.Refined` follows it.

    Args:
        norm: `l2`, `l1`, or `auto`: `l2` for `torch.optim.SGD` and `l1` for all else.
        optimizer_index: Which optimizer, where there are several.
        path: Of the file. Default: `gradient_norms.json` in the logger's folder.

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(accelerator="cpu", callbacks=[GradientNormRecorder()], **quiet)
    """

    def __init__(
        self, norm: Literal["auto", "l2", "l1"] = "auto", optimizer_index: int = 0, path: str | None = None
    ) -> None:
        super().__init__()
        if norm not in ("auto", "l2", "l1"):
            raise ValueError(f"`GradientNormRecorder(norm=...)` must be 'auto', 'l2' or 'l1', got {norm!r}.")
        if isinstance(optimizer_index, bool) or not isinstance(optimizer_index, Integral) or optimizer_index < 0:
            raise ValueError(
                f"`GradientNormRecorder(optimizer_index=...)` must be a whole number of at least 0, "
                f"got {optimizer_index!r}."
            )
        self.norm: Literal["auto", "l2", "l1"] = norm
        self.optimizer_index = int(optimizer_index)
        self.path = path
        self._norms = _Means()
        self._kind: _Norm | None = None  # what is recorded, where `norm` is "auto"
        self._waiting = _Waiting()
        self._folder: str | None = None

    @property
    def norms(self) -> list[float]:
        """What has been recorded: means over as many steps as `every` says, in their order."""
        self._take()
        return list(self._norms.values)

    @property
    def every(self) -> int:
        """How many steps there are to a value."""
        self._take()
        return self._norms.stride

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask where logs go, on all ranks."""
        if stage == "fit":
            self._folder = trainer.log_dir
            self._norms, self._waiting, self._kind = _Means(), _Waiting(), None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the optimizer."""
        if self.optimizer_index >= len(trainer.optimizers):
            raise ValueError(
                f"`GradientNormRecorder(optimizer_index=...)` must be below {len(trainer.optimizers)}, the number of "
                f"optimizers, got {self.optimizer_index}."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the norm of what backward has found."""
        recorded: Any = trainer.optimizers[self.optimizer_index]
        if optimizer is not recorded and getattr(optimizer, "optimizer", None) is not recorded:
            return
        kind = self._recorded(recorded)
        gradients = [p.grad for group in recorded.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = _total([_dense(gradient) for gradient in gradients], kind)
            if self._waiting.is_full_for(norm):
                self._take()
            self._waiting.append(norm / gradient_scale(trainer, recorded))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is, for a run that breaks off."""
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and say what comes next."""
        path = self._write(trainer)
        if path is not None and trainer.is_global_zero:
            rank_zero_info(f"Gradient norms are in {path}. Next: lightning-stable refine {path.parent}")

    def state_dict(self) -> dict[str, Any]:
        """What has been recorded; nobody waits for the device, since a guard asks in every step."""
        return {**self._norms.state_dict(), "waiting": self._waiting.values(), "norm": self._kind}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._norms.load_state_dict(state_dict)
        self._waiting = _Waiting(state_dict["waiting"])
        self._kind = state_dict["norm"]

    def _recorded(self, optimizer: Optimizer) -> _Norm:
        if self._kind is None:
            by_kind: _Norm = "l2" if isinstance(optimizer, SGD) else "l1"
            self._kind = by_kind if self.norm == "auto" else self.norm
        return self._kind

    def _take(self) -> None:
        waiting, self._waiting = self._waiting.values(), _Waiting()
        if len(waiting):
            self._norms.extend(waiting.tolist())

    def _write(self, trainer: Trainer) -> Path | None:
        self._take()
        if not trainer.is_global_zero or not self._norms.values or self._kind is None:
            return None
        path = Path(self.path) if self.path else Path(self._folder or trainer.default_root_dir) / FILE_NAME
        content = {"norm": self._kind, "steps_per_value": self._norms.stride, "gradient_norms": self._norms.values}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(content) + "\n").encode())
        except OSError as error:
            rank_zero_warn(f"GradientNormRecorder cannot write {path}: {error.strerror or error}. The run goes on.")
            return None
        return path


class _Waiting:
    """Norms on the device, for a moment at which waiting for it costs nothing more.

    Args:
        values: Those that there are already.

    Example:
        >>> waiting = _Waiting()
        >>> waiting.append(torch.tensor(2.0))
        >>> waiting.values()
        tensor([2.])
    """

    def __init__(self, values: Tensor | None = None) -> None:
        self._buffer = torch.empty(0)
        self._count = 0
        if values is not None and len(values):
            self._buffer = values.new_empty(_MOST_WAITING)
            self._count = len(values)
            self._buffer[: self._count] = values

    def is_full_for(self, norm: Tensor) -> bool:
        """Whether what is there must be taken first."""
        same = (self._buffer.device, self._buffer.dtype) == (norm.device, norm.dtype)
        return self._count > 0 and (self._count == len(self._buffer) or not same)

    def append(self, norm: Tensor) -> None:
        """Add one."""
        if self._count == 0:
            self._buffer = norm.new_empty(_MOST_WAITING)
        self._buffer[self._count] = norm
        self._count += 1

    def values(self) -> Tensor:
        """A copy of what is there, on its device."""
        return self._buffer[: self._count].clone()


class _Means:
    """Any number of values as at most `_MOST_VALUES` means of neighbours.

    Example:
        >>> means = _Means()
        >>> means.extend([1.0, 3.0])
        >>> means.values, means.stride
        ([1.0, 3.0], 1)
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.stride = 1
        self._sum = 0.0
        self._count = 0
        self._tensor = torch.empty(0, dtype=torch.float64)  # of the values, for states, which are asked for more often

    def extend(self, values: list[float]) -> None:
        """Add values; those that are not finite are left out."""
        for value in values:
            if value != value or value == float("inf"):
                continue
            self._sum, self._count = self._sum + value, self._count + 1
            if self._count == self.stride:
                self.values.append(self._sum / self._count)
                self._sum, self._count = 0.0, 0
            if len(self.values) == _MOST_VALUES:
                self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
                self.stride *= 2
        self._tensor = torch.tensor(self.values, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"values": self._tensor, "stride": self.stride, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take all of it up."""
        self._tensor = state_dict["values"].clone()
        self.values = self._tensor.tolist()
        self.stride, self._sum, self._count = (state_dict[name] for name in ("stride", "sum", "count"))


def _total(gradients: list[Tensor], kind: _Norm) -> Tensor:
    norms = tensor_norms(gradients, order=2 if kind == "l2" else 1)
    return torch.linalg.vector_norm(norms, ord=2 if kind == "l2" else 1)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient.detach()
