# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a training step: each kind of fault, and how it is brought about for the length of one batch."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_stable._lightning.method_layers import layer_over
from lightning_stable._lightning.trainer import gradient_scaler
from lightning_stable.functional.batch_contents import replace_tensors
from lightning_stable.optim.moments import FIRST_MOMENTS, SECOND_MOMENTS
from lightning_stable.testing.fault_targets import target_module, target_parameters

NAN, INF = float("nan"), float("inf")


@dataclass
class Site:
    """Where a fault is to be brought about.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        target: The name of what is hit; None is the kind's own choice.
        factor: What is multiplied by how much.
        how: One of the kind's ways.
        seed: For the kinds that draw random numbers.
        undo: Takes the fault away again.
        mark: To be called when the fault comes true.

    Example:
        >>> Site.__name__  # made by `InjectFault` in a running fit
        'Site'
    """

    trainer: Trainer
    pl_module: LightningModule
    target: str | None
    factor: float
    how: str
    seed: int
    undo: ExitStack
    mark: Callable[[], None]


@dataclass(frozen=True)
class FaultKind:
    """What `InjectFault` has to know of a kind.

    Args:
        arm: Brings the fault about until `Site.undo` is closed.
        hits: `batch`, `loss`, `parameter` and `module` are there for one batch; `scaler` and `process` act once;
            `rate` stays; `optimizer` waits for a resume.
        factor: The default factor; None if the kind multiplies nothing.
        ways: What `how` may be, the default first.
        is_loud: Whether loss or gradient become non-finite or huge, so that a guard has something to see.
        is_in_data: Whether it comes back with its batch, unless told otherwise.

    Example:
        >>> FAULT_KINDS["nan_data"].is_in_data, FAULT_KINDS["nan_loss"].is_in_data
        (True, False)
    """

    arm: Callable[[Site], None]
    hits: str
    factor: float | None = None
    ways: tuple[str, ...] = ()
    is_loud: bool = False
    is_in_data: bool = False


# The loss


def multiply_loss(site: Site, factor: float | None = None) -> None:
    """Multiply the loss that backward starts from, and that everybody else gets to see."""
    factor = site.factor if factor is None else factor
    if not site.pl_module.automatic_optimization:
        _multiply_loss_of_backward(site, factor)
        return

    def faulty(training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = training_step(*args, **kwargs)
        if output is None:
            return None
        site.mark()
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] * factor}
        return output * factor

    layer_over(site.undo, site.pl_module, "training_step", faulty)


def _multiply_loss_of_backward(site: Site, factor: float) -> None:
    """`manual_backward` hands its loss to the strategy, before anybody else sees it."""

    def faulty(backward: Callable[..., Tensor], closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        site.mark()
        return backward(closure_loss * factor, *args, **kwargs)

    layer_over(site.undo, site.trainer.strategy, "backward", faulty)


# The gradient


def change_gradient(site: Site, change: Callable[[Tensor, float], Tensor]) -> None:
    """Change the gradients that this batch adds, of one parameter or of all, before ranks share theirs."""

    def hook(gradient: Tensor) -> Tensor:
        site.mark()
        return change(gradient, site.factor)

    def hook_of_shard(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad = hook(parameter.grad)

    for parameter in target_parameters(site.pl_module, site.target):
        if isinstance(parameter, DTensor):  # its gradient is first seen when ranks have shared it
            handle = parameter.register_post_accumulate_grad_hook(hook_of_shard)
        else:
            handle = parameter.register_hook(hook)
        site.undo.callback(handle.remove)


# Activations


def multiply_activation(site: Site, factor: float | None = None) -> None:
    """Multiply the floating-point tensors that a module returns."""
    factor = site.factor if factor is None else factor

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        site.mark()
        return apply_to_collection(output, Tensor, lambda tensor: tensor * factor if _is_float(tensor) else tensor)

    site.undo.callback(target_module(site.pl_module, site.target).register_forward_hook(hook).remove)


# The batch


def nan_data(site: Site) -> None:
    """Make the floating-point numbers of the batch NaN."""
    _change_batch(site, _is_float, "floating-point", lambda tensor: tensor * NAN)


def label_noise(site: Site) -> None:
    """Shuffle the integers of the batch, or replace them by random ones of the same range."""
    generator = torch.Generator()

    def noisy(labels: Tensor) -> Tensor:
        flat = labels.reshape(-1)
        if site.how == "shuffle":
            order = torch.randperm(flat.numel(), generator=generator)
            return flat[order.to(flat.device)].view(labels.shape)
        low, high = (int(labels.min()), int(labels.max())) if flat.numel() else (0, 0)
        drawn = torch.randint(low, high + 1, labels.shape, generator=generator)
        return drawn.to(labels.device, labels.dtype)

    # the same noise whenever the batch comes again
    _change_batch(site, _is_integer, "integer", noisy, begin=lambda: generator.manual_seed(site.seed))


def _change_batch(
    site: Site,
    is_meant: Callable[[Tensor], bool],
    what: str,
    change: Callable[[Tensor], Tensor],
    begin: Callable[[], Any] = lambda: None,
) -> None:
    def faulty(training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        begin()
        changed: list[Tensor] = []

        def replace(tensor: Tensor) -> Tensor:
            if not is_meant(tensor):
                return tensor
            changed.append(tensor)
            return change(tensor)

        bad = replace_tensors(batch, replace, site.target, "InjectFault(target=...)")
        if not changed:
            where = "the batch" if site.target is None else f"{site.target!r} of the batch"
            raise ValueError(f"`InjectFault` needs a tensor of {what} numbers in {where}, and there is none.")
        site.mark()
        return training_step(bad, *args, **kwargs)

    layer_over(site.undo, site.pl_module, "training_step", faulty)


# Scaler, optimizer, process


def dead_loss_scale(site: Site) -> None:
    """Set the gradient scaler's scale so low that gradients in half precision become 0."""
    plugin = site.trainer.precision_plugin
    plugin.load_state_dict({**plugin.state_dict(), "scale": site.factor})
    site.mark()


def require_scaler(trainer: Trainer) -> None:
    """Refuse a run without a gradient scaler."""
    if gradient_scaler(trainer) is None:
        raise RuntimeError(
            f'`InjectFault("dead_loss_scale")` needs a GradScaler, and precision "{trainer.precision}" has none. Use '
            '`Trainer(precision="16-mixed")`.'
        )


@torch.no_grad()
def wipe_optimizers(site: Site) -> None:
    """Empty the optimizers' state, zero their second moments, or multiply all moments."""
    for optimizer in site.trainer.optimizers:
        if site.how == "empty":
            optimizer.state.clear()
            continue
        names = SECOND_MOMENTS if site.how == "zero_second" else FIRST_MOMENTS | SECOND_MOMENTS
        factor = 0.0 if site.how == "zero_second" else site.factor
        for state in optimizer.state.values():
            for moment in _moments(state, names):
                moment.mul_(factor)
    site.mark()


def _moments(state: Mapping[str, Any], names: frozenset[str]) -> Iterator[Tensor]:
    return (value for name, value in state.items() if name in names and isinstance(value, Tensor))


def send_signal(site: Site, number: int) -> None:
    """Send a signal to the own process."""
    site.mark()
    os.kill(os.getpid(), number)


def stay(site: Site) -> None:
    """Nothing for one batch alone; `InjectFault` drives the learning rate itself."""


FAULT_KINDS: dict[str, FaultKind] = {
    "nan_loss": FaultKind(lambda site: multiply_loss(site, NAN), "loss", is_loud=True),
    "huge_loss": FaultKind(multiply_loss, "loss", factor=1e4, is_loud=True),
    "nan_gradient": FaultKind(
        lambda site: change_gradient(site, lambda gradient, _: gradient * NAN), "parameter", is_loud=True
    ),
    "inf_gradient": FaultKind(
        lambda site: change_gradient(site, lambda gradient, _: torch.full_like(gradient, INF)),
        "parameter",
        is_loud=True,
    ),
    "huge_gradient": FaultKind(
        lambda site: change_gradient(site, lambda gradient, factor: gradient * factor),
        "parameter",
        factor=1e4,
        is_loud=True,
    ),
    "nan_activation": FaultKind(lambda site: multiply_activation(site, NAN), "module", is_loud=True),
    "huge_activation": FaultKind(multiply_activation, "module", factor=1e4, is_loud=True),
    "nan_data": FaultKind(nan_data, "batch", is_loud=True, is_in_data=True),
    "label_noise": FaultKind(label_noise, "batch", ways=("shuffle", "replace"), is_in_data=True),
    "dead_loss_scale": FaultKind(dead_loss_scale, "scaler", factor=2.0**-40),
    "wiped_optimizer": FaultKind(wipe_optimizers, "optimizer", factor=1e3, ways=("empty", "zero_second", "scale")),
    "lr_drift": FaultKind(stay, "rate", factor=1.2),
    "kill": FaultKind(lambda site: send_signal(site, signal.SIGKILL), "process"),
    "terminate": FaultKind(lambda site: send_signal(site, signal.SIGTERM), "process"),
}


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_integer(tensor: Tensor) -> bool:
    return not _is_float(tensor) and tensor.dtype != torch.bool
