# SPDX-License-Identifier: Apache-2.0
"""Measure, every few steps, the curvature that `SophiaG` divides by, in an extra pass that training does not notice."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_stable._lightning.loggers import log_scalars
from lightning_stable._lightning.results import metric_states, restore_metric_states
from lightning_stable.optim.sophia import SophiaG
from lightning_stable.optim.step_gate import StepGate

_USER = "gauss_newton_bartlett"
_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_LOGGING = ("log", "log_dict")

Gradients = list[Tensor | None]


class GaussNewtonBartlett(Callback):
    """Gives `SophiaG` an estimate of the Hessian's diagonal every n optimizer steps, for that very step.

        step s, counted from 0 and by steps really taken; s mod every_n_steps = 0:
        y_hat_i ~ softmax(logits_i)                                  for each of the B labels of the batch
        g_hat   = gradient of (1 / B) sum_i cross_entropy(logits_i, y_hat_i)
        h       <- beta2 h + (1 - beta2) B g_hat^2                   `SophiaG.update_hessian`

    The mean of B g_hat^2 over the draws is the diagonal of the Gauss-Newton matrix, which is never negative.

    Paper: Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training" (ICLR
    2024), algorithm 2.

    Logits: `training_step` runs once more on the step's batch (the last micro-batch, when gradients are accumulated),
    in the same precision, right before the optimizer moves. Whatever it hands to `cross_entropy` or `nll_loss` of
    `torch.nn.functional` (so `nn.CrossEntropyLoss` too), and needs a gradient, are the logits. All of them together
    are the B labels, those at `ignore_index` left out; class weights, label smoothing, the factors of several losses,
    and terms that are no cross-entropy do not enter. A module that computes its loss in another way defines

        def sampled_label_loss(self, batch, generator) -> tuple[Tensor, int]:
            ...  # the mean loss over labels drawn, with `generator`, from its own prediction; and how many they are

    Training goes on as if the pass had not been: gradients, buffers, random numbers, torchmetrics and `self.log` are
    untouched. What a `training_step` does beyond these (append to a list, write to a logger of its own) happens twice.

    With several processes each draws labels for its own batch; g_hat is the gradient of the mean over all of them,
    alike on all ranks. Labels and dropout depend on `seed`, step and rank: a resumed run equals an uninterrupted one.
    A step that was vetoed, skipped by a GradScaler or rolled back does not count. Entries of g_hat^2 that are not
    finite leave h as it is.

    Deviations from the official code: it measures after every k-th step, so that the first k steps have no curvature;
    here, as in the paper, the first step has it. The backward pass is of the sum, divided later: no scale in float16.

    Logs `stability/sophia/win_rate`, the share of entries that were not clipped, at each measured step; the paper
    advises 0.1 to 0.5 (see `SophiaG`).

    Args:
        every_n_steps: Optimizer steps from one measurement to the next. Default: the paper's 10.
        seed: Of the labels drawn.

    Raises:
        ValueError: If `every_n_steps` is less than 1.
        RuntimeError: If the optimizer is not one `SophiaG`, if parameters are sharded, or if a measured step computes
            no cross-entropy.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[GaussNewtonBartlett(every_n_steps=10)], accelerator="cpu", **quiet)
    """

    def __init__(self, every_n_steps: int = 10, seed: int = 0) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"`GaussNewtonBartlett(every_n_steps=...)` must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.seed = seed
        self._steps_taken = 0
        self._measured = False  # in this batch
        self._batch: tuple[Any, int] | None = None
        self._gate: StepGate | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start counting anew; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, _SHARDED):
            raise RuntimeError(
                f"`GaussNewtonBartlett` needs whole parameters, which {type(trainer.strategy).__name__} shards. Use "
                "`Trainer(strategy='ddp')`."
            )
        _check_module(pl_module)
        self._steps_taken = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand in front of the optimizer's step."""
        optimizer = _the_optimizer(trainer)
        self._gate = StepGate.attach(optimizer, user=_USER)
        self._gate.before_step[_USER] = lambda: self._before_step(trainer, pl_module, optimizer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = (batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the clipping left of a measured step, and let go of the batch."""
        self._batch = None
        if self._measured:
            self._measured = False
            log_scalars(trainer, {"stability/sophia/win_rate": _the_optimizer(trainer).win_rate()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizer as it was found."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was found."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was found."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Steps taken so far."""
        return {"steps_taken": self._steps_taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint, or from where a rollback in mid-run went back to."""
        self._steps_taken = int(state_dict["steps_taken"])
        self._measured = False

    def _before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: SophiaG) -> None:
        if self._steps_taken % self.every_n_steps == 0:
            self._measure(trainer, pl_module, optimizer)
            self._measured = True
        self._steps_taken += 1

    def _measure(self, trainer: Trainer, pl_module: LightningModule, optimizer: SophiaG) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        seed = random.Random(f"{self.seed} {self._steps_taken} {trainer.global_rank}").getrandbits(63)
        with _unnoticed(pl_module), torch.enable_grad():
            _seed_defaults(seed)  # else dropout would be that of the next step
            with trainer.precision_plugin.train_step_context():
                total, count = self._summed_loss(pl_module, torch.Generator(pl_module.device).manual_seed(seed))
            gradients = _gradients(total if count else None, parameters)
        if trainer.world_size > 1:
            gradients, count = _summed_over_ranks(parameters, gradients, count)
        if count:
            means = [None if gradient is None else gradient / count for gradient in gradients]
            optimizer.update_hessian(means, batch_size=count)

    def _summed_loss(self, pl_module: LightningModule, generator: torch.Generator) -> tuple[Tensor, int]:
        if self._batch is None:
            raise RuntimeError("`GaussNewtonBartlett` met an optimizer step outside of a training batch.")
        batch, batch_idx = self._batch
        own_loss: Any = getattr(pl_module, "sampled_label_loss", None)
        if own_loss is not None:
            mean, count = own_loss(batch, generator)
            return mean * count, int(count)
        recorder = _LogitsRecorder()
        takes_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
        with recorder, torch.compiler.set_stance("force_eager"):  # a compiled step would hide its calls
            pl_module.training_step(*((batch, batch_idx) if takes_index else (batch,)))
        if not recorder.seen:
            raise RuntimeError(
                f"`GaussNewtonBartlett` saw no logits: `{type(pl_module).__name__}.training_step` called neither "
                "`cross_entropy` nor `nll_loss` of `torch.nn.functional` on what needs a gradient. Define "
                "`sampled_label_loss(self, batch, generator)` in the module, as `GaussNewtonBartlett` describes it."
            )
        losses, counts = zip(*(_sampled(logits, ignored, generator) for logits, ignored in recorder.seen), strict=True)
        return torch.stack([loss.to(losses[0]) for loss in losses]).sum(), sum(counts)

    def _detach(self) -> None:
        self._batch, self._measured = None, False
        if self._gate is not None:
            self._gate.detach(user=_USER)
            self._gate = None


class _LogitsRecorder(TorchFunctionMode):
    """Keeps the logits of every cross-entropy computed within, and where labels are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.cross_entropy or func is F.nll_loss:  # log-probabilities are logits, too
            self._record(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _record(
        self, input: Tensor, target: Tensor, weight: Any = None, size_average: Any = None,
        ignore_index: int = -100, *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        if input.requires_grad:
            self.seen.append((input, None if target.is_floating_point() else target == ignore_index))


def _sampled(logits: Tensor, ignored: Tensor | None, generator: torch.Generator) -> tuple[Tensor, int]:
    """The summed cross-entropy of labels drawn from softmax(logits) [N, classes, ...], and how many they are."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    classes = 1 if logits.ndim > 1 else 0
    probabilities = logits.detach().softmax(classes)
    # argmax(p / e) with e ~ Exp(1) is a draw from p, also where NaN would stop torch.multinomial
    noise = torch.empty(logits.shape, dtype=logits.dtype, device=generator.device).exponential_(generator=generator)
    noise = noise.to(logits.device).clamp_(min=torch.finfo(logits.dtype).tiny)
    labels = probabilities.div_(noise).argmax(classes)
    count = labels.numel()
    if ignored is not None:
        labels.masked_fill_(ignored, -100)
        count -= int(ignored.sum())
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), count


def _gradients(total: Tensor | None, parameters: list[Tensor]) -> Gradients:
    """The gradient of `total` for each parameter it depends on; no `.grad` is touched, no hook of DDP called."""
    if total is None:
        return [None for _ in parameters]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = iter(torch.autograd.grad(total, trained, allow_unused=True))
    return [next(found) if parameter.requires_grad else None for parameter in parameters]


def _summed_over_ranks(parameters: list[Tensor], gradients: Gradients, count: int) -> tuple[Gradients, int]:
    """Sums over all ranks; a parameter that only some of them used is 0 on the others."""
    numbers = torch.tensor([count, *(gradient is not None for gradient in gradients)], device=parameters[0].device)
    torch.distributed.all_reduce(numbers)
    total, *used = numbers.tolist()
    summed: Gradients = []
    for parameter, gradient, ranks in zip(parameters, gradients, used, strict=True):
        summed.append(None)
        if ranks:
            summed[-1] = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
            torch.distributed.all_reduce(summed[-1])
    return summed, total


@contextmanager
def _unnoticed(pl_module: LightningModule) -> Iterator[None]:
    """Put back what a forward pass leaves behind: buffers, metrics, random numbers; and let it log nothing."""
    modules = list(pl_module.modules())
    buffers = [(module._buffers, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    copies = [(buffer, buffer.clone()) for _, _, buffer in buffers if buffer is not None]
    metrics = [module for module in modules if isinstance(module, Metric)]
    states = metric_states(metrics)
    attributes = vars(pl_module)
    shadowed = {name: attributes.pop(name) for name in _LOGGING if name in attributes}
    attributes.update(dict.fromkeys(_LOGGING, _log_nothing))
    try:
        with isolate_rng():
            yield
    finally:
        for name in _LOGGING:
            del attributes[name]
        attributes.update(shadowed)
        restore_metric_states(metrics, states)
        with torch.no_grad():
            for buffer, copy in copies:
                buffer.copy_(copy)
        for holder, name, buffer in buffers:
            holder[name] = buffer  # a module may have bound a new tensor to the name


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for `self.log` and `self.log_dict`."""


def _seed_defaults(seed: int) -> None:
    """Seed the generators that `isolate_rng` puts back; `torch.manual_seed` would reach further."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _the_optimizer(trainer: Trainer) -> SophiaG:
    if len(trainer.optimizers) == 1 and isinstance(trainer.optimizers[0], SophiaG):
        return trainer.optimizers[0]
    found = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
    raise RuntimeError(
        f"`GaussNewtonBartlett` measures for one optimizer, a `SophiaG`; got {found}. Return "
        "`lightning_stable.optim.SophiaG(self.parameters())` from `configure_optimizers`, or leave the callback out."
    )


def _check_module(pl_module: LightningModule) -> None:
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise RuntimeError(
            "`GaussNewtonBartlett` needs the batch a second time, which `training_step(self, dataloader_iter)` has "
            "used up. Use `training_step(self, batch, batch_idx)`."
        )
    if not pl_module.automatic_optimization and not hasattr(pl_module, "sampled_label_loss"):
        raise RuntimeError(
            "`GaussNewtonBartlett` cannot run `training_step` once more when it steps the optimizer itself. Define "
            "`sampled_label_loss(self, batch, generator)` in the module, as `GaussNewtonBartlett` describes it."
        )
