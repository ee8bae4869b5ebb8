# SPDX-License-Identifier: Apache-2.0
"""A step that spiked, as `SaveBatch` writes it to disk, and what can be done with it later."""

import contextlib
import dataclasses
import io
import json
import math
import pkgutil
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_stable._lightning.safe_load import safe_load
from lightning_stable.files import write_atomically
from lightning_stable.guard.incident import Incident
from lightning_stable.snapshots.random_state import RandomState

_PLAIN = (str, int, float, bool, type(None))
_CHECKPOINT_PATHS = ("last_model_path", "best_model_path")


class SavedStep:
    """The batches of a step that spiked and what was known of it, for study.

    Args:
        path: A file that `SaveBatch` has written.

    Raises:
        ValueError: If it is something else; whatever it holds, no code in it is run.

    Example:
        >>> SavedStep("spikes/step00000123.pt")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'spikes/step00000123.pt'
    """

    def __init__(self, path: str) -> None:
        saved = _checked(path, safe_load(path))
        self.batches: list[Any] = saved.pop("batches")
        self.random_state: dict[str, Any] = saved.pop("random_state")
        self.info: dict[str, Any] = saved

    def __str__(self) -> str:
        lines = [f"{key}: {value}" for key, value in self.info.items()]
        lines += [line for batch in self.batches for line in _described(batch)]
        return "\n".join(line if line.isprintable() else repr(line)[1:-1] for line in lines)

    def repeat(self, module: LightningModule | str, checkpoint: str | None = None) -> dict[str, Any]:
        """Run forward and backward of the step again, from its random state, and return losses and gradient norm.

        With the weights that the step began with, and on the device it ran on, they are those of the spike.

        Args:
            module: A module under automatic optimization; or the import path of its class, if there is a checkpoint.
            checkpoint: A checkpoint of the run, as near before the step as there is; `None` takes `module` as it is.

        Raises:
            ValueError: If `module` is an import path and there is no checkpoint, or the checkpoint cannot be loaded.
        """
        model = _loaded(module, checkpoint)
        before = RandomState()
        try:
            RandomState.from_state_dict(self.random_state).restore()
            return _run_again(model, self.batches, self.info["batch_indices"])
        finally:
            before.restore()


def write_step(
    path: Path, trainer: Trainer, pl_module: LightningModule, incident: Incident, scene: Mapping[str, Any]
) -> list[str]:
    """Write `path` and the JSON file beside it; returns, in words, what was saved and what was not.

    Args:
        path: Of the `.pt` file.
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        incident: What is known of the spike.
        scene: With `batches`, `readings` and `random_state`.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> write_step.__name__  # needs a running fit; see `SaveBatch`
        'write_step'
    """
    lost: list[str] = []
    numbered = zip(incident.batches, scene["batches"], strict=True)
    batches = [_plain(batch, f"batch {index}", lost) for index, batch in numbered]
    fields = incident.to_json()
    info = {
        "batch_indices": fields.pop("batches"),
        **fields,
        "readings": {key: v if math.isfinite(v) else str(v) for key, v in scene["readings"].items()},
        "left_out": lost,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"batches": batches, "random_state": scene["random_state"], **info}, buffer)
    write_atomically(path, buffer.getvalue())
    described = [line for batch in batches for line in _described(batch)]
    text = {**info, "batches": described, "repeat": _command(path, trainer, pl_module)}
    write_atomically(path.with_suffix(".json"), (json.dumps(text, indent=2) + "\n").encode())
    return [f"batch saved to {path}", *(f"not saved as it was: {what}" for what in lost)]


def _checked(path: str, saved: Any) -> dict[str, Any]:
    """What a file holds, if it is a saved step."""
    problem = None
    if not isinstance(saved, dict) or not {"batches", "random_state", "batch_indices"} <= saved.keys():
        problem = "it holds something else"
    elif not (isinstance(saved["batches"], list) and isinstance(saved["batch_indices"], list)):
        problem = "batches and their indices must be lists"
    elif len(saved["batches"]) != len(saved["batch_indices"]):
        problem = f"it has {len(saved['batches'])} batches and {len(saved['batch_indices'])} indices"
    else:
        try:
            RandomState.from_state_dict(saved["random_state"])
        except Exception:  # whatever strange values lead to
            problem = "its random state is none"
    if problem:
        raise ValueError(f"`SavedStep(path=...)` must be a file that `SaveBatch` has written; {path}: {problem}.")
    return saved


def _plain(value: Any, where: str, lost: list[str]) -> Any:
    """`value` in types that `weights_only` loads; what had to be changed or left out is added to `lost`."""
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor).cpu().clone()  # of a view only what it shows
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray | np.generic):
        with contextlib.suppress(TypeError, ValueError):  # objects, or another byte order
            return torch.from_numpy(np.array(value))
    if isinstance(value, Mapping):
        lost.extend(f"{where}[{key!r}] (its key)" for key in value if type(key) not in _PLAIN)
        return {key: _plain(item, f"{where}[{key!r}]", lost) for key, item in value.items() if type(key) in _PLAIN}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{index}]", lost) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    lost.append(f"{where} ({type(value).__name__})")
    return {name: _plain(item, f"{where}.{name}", []) for name, item in _tensors_of(value).items()}


def _tensors_of(value: Any) -> dict[str, Any]:
    """What of an object's own attributes is a tensor, or a container of some."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    attributes = getattr(value, "__dict__", {})
    return {
        name: item
        for name, item in attributes.items()
        if isinstance(item, Tensor) or (isinstance(item, dict | list | tuple) and _holds_tensors(item))
    }


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0])


def _described(value: Any, where: str = "batch") -> list[str]:
    """One line for each tensor: shape, type, range, and how many entries are not finite."""
    if isinstance(value, Mapping):
        return [line for key, item in value.items() for line in _described(item, f"{where}[{key!r}]")]
    if isinstance(value, list | tuple):
        return [line for index, item in enumerate(value) for line in _described(item, f"{where}[{index}]")]
    if not isinstance(value, Tensor):
        return [f"{where}: {value!r}"]
    text = f"{where}: {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if not value.numel() or value.is_complex() or value.layout != torch.strided:
        return [text]
    numbers = value.double()
    finite = numbers[numbers.isfinite()]
    if finite.numel():
        text += f", from {finite.min().item():.6g} to {finite.max().item():.6g}"
    return [f"{text}, {numbers.numel() - finite.numel()} not finite"]


def _command(path: Path, trainer: Trainer, pl_module: LightningModule) -> str:
    """One line that runs the step again, or, where nobody can import the module or has a checkpoint, shows it."""
    kind = type(pl_module)
    paths = [getattr(callback, name, "") for callback in trainer.checkpoint_callbacks for name in _CHECKPOINT_PATHS]
    checkpoint = next((found for found in paths if found), None)
    name = f"{kind.__module__}.{kind.__qualname__}"
    step = f"SavedStep({str(path)!r})"
    if checkpoint and kind.__module__ != "__main__" and "<" not in name:
        step += f".repeat({name!r}, {str(checkpoint)!r})"
    return f"python -c {shlex.quote(f'from lightning_stable.guard import SavedStep; print({step})')}"


def _loaded(module: LightningModule | str, checkpoint: str | None) -> LightningModule:
    if isinstance(module, str) and checkpoint is None:
        raise ValueError("`SavedStep.repeat(checkpoint=...)` must be given with the import path of a module.")
    if checkpoint is None:
        assert isinstance(module, LightningModule)
        return module
    kind = pkgutil.resolve_name(module) if isinstance(module, str) else type(module)
    if Path(checkpoint).is_file():
        safe_load(checkpoint)  # says in one line why it cannot be loaded
    return kind.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)


def _run_again(model: LightningModule, batches: list[Any], indices: list[int]) -> dict[str, Any]:
    was_training = model.training
    model.train()
    model.zero_grad()
    losses = []
    for index, batch in zip(indices, batches, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*trainer.* reference is not registered")  # nothing is logged here
            output: Any = model.training_step(move_data_to_device(batch, model.device), index)
        loss = output["loss"] if isinstance(output, Mapping) else output
        (loss / len(batches)).backward()
        losses.append(loss.item())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.train(was_training)
    return {"losses": losses, "grad_norm": torch.nn.utils.get_total_norm(gradients).item()}
