# SPDX-License-Identifier: Apache-2.0
"""Run gradient transforms under Lightning: after the reduction over ranks, before the clipping."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable._lightning.trainer import callbacks_of, gradient_scale, gradient_scaler, log_every_n_steps
from lightning_stable.callbacks.momentum_reset import MomentumReset
from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.optim.step_gate import StepGate
from lightning_stable.parameters import parameter_roles
from lightning_stable.transforms.adaptive_gradient_clip import AdaptiveGradientClip
from lightning_stable.transforms.spike_clip import SpikeClip
from lightning_stable.transforms.transform import Transform
from lightning_stable.transforms.z_score_clip import ZScoreClip


class GradientTransforms(Callback):
    """Hands the gradients of every optimizer through a chain of transforms, right before its step.

        loss.backward -> reduced over ranks, accumulated, unscaled -> first transform -> ... -> last transform
        -> `Trainer(gradient_clip_val=...)` -> optimizer.step

    Paper: see the transforms.

    Deviations: none. Every optimizer has a chain of its own, a copy of the one given, so a transform's memory is of one
    optimizer's gradients. What an optimizer remembers is open to its chain: with AdamW, `SpikeClip` uses AdamW's own
    second moment. `AdaptiveGradientClip(exclude=...)` is resolved by the names and roles of the module's parameters.
    The chain is passed over, and remembers nothing, in a step that the guard vetoes, or whose gradients have an
    infinity that a GradScaler is about to skip. `SAM`'s first gradient is passed over too. Under a GradScaler,
    optimizers that unscale by themselves (fused ones) have their gradients unscaled for the chain and scaled again.

    Put it behind `SpikeGuard`, which must see the gradients as they are.

    Logs every `Trainer(log_every_n_steps=...)` steps, with `/0`, `/1`, ... behind if there are several optimizers:
    `stability/transforms/norm_before` and `.../norm_after` the chain, and of those that clip
    `stability/transforms/clip_rate/<transform>`.

    Args:
        transforms: The chain, in the order in which it is run; or one transform. Default: `ZScoreClip()`, which needs
            no threshold.

    Raises:
        ValueError: If there is no transform, the guard stands behind, or `SpikeClip` does not know of the
            `MomentumReset` beside it.
        TypeError: If something is not a `Transform`.
        RuntimeError: With DeepSpeed, or if a checkpoint holds the state of another chain.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_stable.transforms import GradientCentralization, ZScoreClip
        >>> transforms = GradientTransforms([GradientCentralization(), ZScoreClip()])
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[transforms], accelerator="cpu", **quiet)
    """

    def __init__(self, transforms: list[Transform] | Transform | None = None) -> None:
        super().__init__()
        transforms = ZScoreClip() if transforms is None else transforms
        self.transforms = [transforms] if isinstance(transforms, Transform | str) else list(transforms)
        if not self.transforms:
            raise ValueError("`GradientTransforms(transforms=...)` must hold at least one transform, got none.")
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TypeError(
                    "`GradientTransforms(transforms=...)` must hold transforms, such as "
                    f"`lightning_stable.transforms.ZScoreClip()`, got {transform!r}."
                )
        self._chains: list[list[Transform]] = []
        self._loaded: list[list[dict[str, Any]]] | None = None
        self._measured: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the company it is in, and start anew; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RuntimeError("`GradientTransforms` cannot reach DeepSpeed's own gradients. Use another strategy.")
        self._chains, self._loaded = [], None
        self._check_company(callbacks_of(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give every optimizer its chain."""
        self._chains = [self._chain_for(optimizer, pl_module) for optimizer in trainer.optimizers]
        if self._loaded is not None:
            self._restore(self._loaded)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Transform the gradients of this optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # LightningOptimizer wraps
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or _is_vetoed(optimizer) or getattr(optimizer, "phase", None) == "ascend":
            return
        scaler = gradient_scaler(trainer)
        if scaler is not None and not bool(tensor_norms(gradients).isfinite().all()):
            return
        scale = gradient_scale(trainer, optimizer)
        index = next(number for number, other in enumerate(trainer.optimizers) if other is optimizer)
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / scale)
        self._run(trainer, index, parameters, gradients)
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured before the step."""
        if self._measured:
            log_scalars(trainer, self._measured)
            self._measured = {}

    def state_dict(self) -> dict[str, Any]:
        """What the transforms remember, optimizer by optimizer."""
        if not self._chains:
            return {"transforms": self._names(), "chains": self._loaded or []}
        chains = [[transform.state_dict() for transform in chain] for chain in self._chains]
        return {"transforms": self._names(), "chains": chains}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, or from where a rollback in mid-run went back to."""
        if state_dict["transforms"] != self._names():
            raise RuntimeError(
                f"The checkpoint of `GradientTransforms` holds the state of {state_dict['transforms']}, but the chain "
                f"is {self._names()} now. Resume with the transforms that the checkpoint was written with."
            )
        self._measured = {}
        if self._chains:
            self._restore(state_dict["chains"])
        else:
            self._loaded = state_dict["chains"]

    def _run(self, trainer: Trainer, index: int, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        every = log_every_n_steps(trainer)
        measuring = every > 0 and (logging_step(trainer) + 1) % every == 0
        before = tensor_norms(gradients) if measuring else None
        for transform in self._chains[index]:
            transform.transform(parameters)
        if before is None:
            return
        where = f"/{index}" if len(self._chains) > 1 else ""
        self._measured[f"stability/transforms/norm_before{where}"] = torch.linalg.vector_norm(before)
        after = torch.linalg.vector_norm(tensor_norms(gradients))
        self._measured[f"stability/transforms/norm_after{where}"] = after
        for name, transform in zip(self._names(), self._chains[index], strict=True):
            if transform.clip_rate is not None:
                self._measured[f"stability/transforms/clip_rate/{name}{where}"] = transform.clip_rate

    def _chain_for(self, optimizer: Optimizer, pl_module: LightningModule) -> list[Transform]:
        chain = copy.deepcopy(self.transforms)
        for transform in chain:
            transform.bind(optimizer)
            if isinstance(transform, AdaptiveGradientClip):
                parameters, roles = dict(pl_module.named_parameters()), parameter_roles(pl_module)
                excluded = [name for name, role in roles.items() if transform.excludes(name, role)]
                transform.exclude_parameters(parameters[name] for name in excluded)
        return chain

    def _restore(self, chains: list[list[dict[str, Any]]]) -> None:
        if len(chains) not in (0, len(self._chains)):  # 0: saved before training had begun
            raise RuntimeError(
                f"The checkpoint of `GradientTransforms` is of {len(chains)} optimizers, but there are "
                f"{len(self._chains)} now. Resume with the optimizers that the checkpoint was written with."
            )
        for chain, states in zip(self._chains, chains, strict=False):
            for transform, state in zip(chain, states, strict=True):
                transform.load_state_dict(state)

    def _names(self) -> list[str]:
        """The transforms' names; the second of a kind is SpikeClip2."""
        seen: Counter[str] = Counter()
        names = []
        for transform in self.transforms:
            kind = type(transform).__name__
            seen[kind] += 1
            names.append(kind if seen[kind] == 1 else f"{kind}{seen[kind]}")
        return names

    def _check_company(self, callbacks: Sequence[Callback]) -> None:
        behind = callbacks[list(callbacks).index(self) + 1 :]
        for callback in behind:
            if getattr(callback, "judges_gradients", False):
                guard = type(callback).__name__
                raise ValueError(
                    f"`Trainer(callbacks=...)` must name `{guard}` before `GradientTransforms`: it judges the "
                    f"gradients as they are. Write [{guard}(...), GradientTransforms(...)]."
                )
        for reset in (callback for callback in callbacks if isinstance(callback, MomentumReset)):
            for clip in (transform for transform in self.transforms if isinstance(transform, SpikeClip)):
                if reset.moments == "all" and clip.reset_interval != reset.every_n_steps:
                    raise ValueError(
                        f"`SpikeClip(reset_interval=...)` must be {reset.every_n_steps}, the `every_n_steps` of the "
                        f'`MomentumReset(moments="all")` beside it, got {clip.reset_interval}.'
                    )


def _is_vetoed(optimizer: Optimizer) -> bool:
    gate = StepGate.of(optimizer)
    return gate is not None and gate.veto
