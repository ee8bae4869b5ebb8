# SPDX-License-Identifier: Apache-2.0
"""Keep the graph of the gradients for optimizers that differentiate them once more."""

import functools
import inspect
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_stable._lightning import progress
from lightning_stable._lightning.trainer import callbacks_of, gradient_scaler


class CreateGraph(Callback):
    """Makes every backward pass of automatic optimization with `create_graph=True`, as AdaHessian needs it.

        g = dL/dw, with the graph that led to it        `loss.backward(create_graph=True)`
        z ~ {-1, 1};   diag(H) is about z * d(g z)/dw    in the step of the optimizer, which differentiates g

    Paper: Yao et al., "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning" (AAAI 2021).

    Deviations: none; the estimate itself is the optimizer's affair, such as `pytorch_optimizer.AdaHessian`'s.

    Costs, with the optimizer's second pass, 3.3 to 3.8 times the time of AdamW's steps and 2.7 times their memory
    (`CharLM` on a CPU; the paper says twice the time). The graph is freed after each optimizer step, the gradients stay
    to be read; `accumulate_grad_batches` keeps the graphs of all its batches until the step.

    For the time of the fit `scaled_dot_product_attention` runs its math kernel only, in all of the process, as torch's
    fused ones have no second derivative. Other operations without one (cuDNN's recurrent networks, what
    `torch.compile` made) end in torch's own error. Clipping scales the gradients and not the graph that led to them:
    the curvature is that of the loss. A `backward` of the module's own is called with `create_graph=True`.

    Raises:
        RuntimeError: With a strategy for several processes, a GradScaler, manual optimization, a second `CreateGraph`,
            or a `backward` of the module's own that does not take `create_graph`.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[CreateGraph()], accelerator="cpu", **quiet)
    """

    def __init__(self) -> None:
        super().__init__()
        self._undo: ExitStack | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand in for the module's `backward`; so early that a learning rate finder has it too."""
        if stage != "fit":
            return
        _check_trainer(trainer)
        _check_module(pl_module)
        with ExitStack() as undo:
            undo.enter_context(sdpa_kernel(SDPBackend.MATH))
            undo.enter_context(warnings.catch_warnings())
            # The cycle of parameter, gradient and graph that torch warns of is broken after every step, see `_let_go`.
            warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True", UserWarning)
            undo.callback(_let_go, pl_module)
            undo.callback(_replace_backward(pl_module))
            self._undo = undo.pop_all()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Free the graph, once the optimizer has used it: before the next forward pass, which needs the memory."""
        if not progress.is_accumulating(trainer):
            _let_go(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave module and torch as they were found."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave module and torch as they were found."""
        self._detach()

    def _detach(self) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None


def _replace_backward(pl_module: LightningModule) -> Callable[[], None]:
    """Have `create_graph=True` added to each call; returns what undoes it."""
    attributes = vars(pl_module)
    before = {"backward": attributes["backward"]} if "backward" in attributes else {}
    # a partial of a bound method, unlike a closure, can be pickled and copied with the module
    attributes["backward"] = functools.partial(pl_module.backward, create_graph=True)

    def undo() -> None:
        del attributes["backward"]
        attributes.update(before)

    return undo


def _let_go(pl_module: LightningModule) -> None:
    """Cut the gradients off the graph that led to them, and keep their numbers."""
    for parameter in pl_module.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.detach()


def _check_trainer(trainer: Trainer) -> None:
    if isinstance(trainer.strategy, ParallelStrategy):
        raise RuntimeError(
            f"`CreateGraph()` works in one process, got {type(trainer.strategy).__name__} with {trainer.world_size}: "
            "processes would draw signs of their own, and their weights drift apart. Use "
            '`Trainer(devices=1, num_nodes=1, strategy="auto")`.'
        )
    if gradient_scaler(trainer) is not None:
        raise RuntimeError(
            "`CreateGraph()` cannot work with a GradScaler, which unscales the gradients and not their graph, got "
            f'precision "{trainer.precision}". Use `Trainer(precision="bf16-mixed")` or "32-true".'
        )
    count = sum(isinstance(callback, CreateGraph) for callback in callbacks_of(trainer))
    if count > 1:
        raise RuntimeError(f"`Trainer(callbacks=...)` must hold one `CreateGraph` only, got {count}.")


def _check_module(pl_module: LightningModule) -> None:
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise RuntimeError(
            f"`CreateGraph()` is for automatic optimization, got `{name}.automatic_optimization = False`. Call "
            "`self.manual_backward(loss, create_graph=True)` in `training_step`, and leave the callback out."
        )
    try:
        inspect.signature(pl_module.backward).bind(None, create_graph=True)
    except TypeError:
        raise RuntimeError(
            f"`CreateGraph()` calls `{name}.backward` with `create_graph=True`, which it does not take. Define "
            "`backward(self, loss, **kwargs)`, and hand `kwargs` on to `loss.backward`."
        ) from None
