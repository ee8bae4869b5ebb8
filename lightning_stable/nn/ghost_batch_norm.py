# SPDX-License-Identifier: Apache-2.0
"""BatchNorm with the statistics of small batches inside of a large one."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

Module = TypeVar("Module", bound=nn.Module)


class GhostBatchNorm(_BatchNorm):
    """BatchNorm whose batch is cut into ghosts, each normalised by itself.

        y = gamma (x - mean_g) / sqrt(var_g + eps) + beta      g is the ghost of a sample; over samples and positions
        running = (1 - momentum) running + momentum stat_g     once for each ghost, in order; variances unbiased

    So a large batch keeps the noise that small ones bring into the statistics, and which generalisation needs. In
    evaluation it is BatchNorm.

    Paper: Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks" (NeurIPS 2017). Its learning rate grows with the root of the batch, see
    `schedules.scale_lr(..., rule="sqrt")`.

    Deviations: none. The last ghost is smaller where `ghost_size` does not divide the batch; if it were a single value
    a channel, whose variance nobody knows, it joins the one before. `num_batches_tracked` counts ghosts. On several
    ranks each has ghosts of its own, and `SyncBatchNorm` is the opposite of it: leave `Trainer(sync_batchnorm=False)`.

    Args:
        num_features: Channels C of the input [B, C], [B, C, L], [B, C, H, W] or [B, C, D, H, W].
        ghost_size: Samples of a ghost. Default: the paper's.
        eps: Added to the variance. Default: torch's.
        momentum: Share of a ghost's statistics in the running ones; `None` is the mean over all ghosts so far. Default:
            torch's.
        affine: Whether there are gamma and beta.
        track_running_stats: Whether there are running statistics; without them evaluation has ghosts, too.
        device: Of parameters and statistics.
        dtype: Of parameters and statistics.

    Raises:
        ValueError: If an argument is out of its bounds, the input has another number of axes, or all ghosts have a
            single value a channel.

    Example:
        >>> norm = GhostBatchNorm(3, ghost_size=4)
        >>> y = norm(torch.randn(8, 3, 5))
        >>> bool(y[:4].mean(dim=(0, 2)).abs().max() < 1e-6), norm.num_batches_tracked.item()
        (True, 2)
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 128,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(num_features, ghost_size, eps, momentum)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.ghost_size = ghost_size

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` [B, C, ...]."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        ghosts, last = self._ghosts(input)
        cut = len(input) - last
        if cut == 0:
            return self._normalised(input, 1)
        output = self._normalised(input[:cut], ghosts)
        if last:
            output = torch.cat([output, self._normalised(input[cut:], 1)])
        return output.contiguous(memory_format=_memory_format(input))

    def _ghosts(self, input: Tensor) -> tuple[int, int]:
        """How many ghosts of `ghost_size` samples there are, and how many samples the last one has beside them."""
        values = input[:1, 0].numel()  # positions of a channel
        if values * self.ghost_size == 1 and len(input) > 1:
            raise ValueError(
                f"`GhostBatchNorm(ghost_size=1)` needs more than one position a channel, got {list(input.shape)}."
            )
        ghosts, last = divmod(len(input), self.ghost_size)
        return (ghosts - 1, last + self.ghost_size) if ghosts and values * last == 1 else (ghosts, last)

    def _normalised(self, input: Tensor, ghosts: int) -> Tensor:
        """BatchNorm of every ghost, all at once: [g s, C, ...] is [s, g C, ...], with the channels of all ghosts."""
        if ghosts > 1:
            input = input.unflatten(0, (ghosts, -1)).transpose(0, 1).flatten(1, 2)
        mean = var = None
        if self.training and self.running_mean is not None:
            assert self.running_var is not None
            size = ghosts * self.num_features
            mean, var = self.running_mean.new_zeros(size), self.running_var.new_zeros(size)
        weight, bias = (None if one is None else one.repeat(ghosts) for one in (self.weight, self.bias))
        output = F.batch_norm(input, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
        if mean is not None and var is not None and input.numel():
            self._track(mean.view(ghosts, -1), var.view(ghosts, -1))
        if ghosts > 1:
            output = output.unflatten(1, (ghosts, -1)).transpose(0, 1).flatten(0, 1)
        return output

    @torch.no_grad()
    def _track(self, means: Tensor, variances: Tensor) -> None:
        """Have the running statistics take in those of every ghost [g, C], one after another."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        ghosts = len(means)
        self.num_batches_tracked.add_(ghosts)
        settings: Any = {"dtype": torch.promote_types(means.dtype, torch.float32), "device": means.device}
        if self.momentum is None:  # the mean over all; a count that was read would have to be waited for
            total = self.num_batches_tracked.to(**settings)
            kept, weights = (total - ghosts) / total, (1.0 / total).expand(ghosts)
        else:  # what comes later makes less of what came before
            kept = (1.0 - self.momentum) ** ghosts
            weights = self.momentum * (1.0 - self.momentum) ** torch.arange(ghosts - 1, -1, -1, **settings)
        weights = weights.to(means.dtype)
        self.running_mean.mul_(kept).add_(weights @ means)
        self.running_var.mul_(kept).add_(weights @ variances)

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.ndim <= 5 or input.shape[1] != self.num_features:
            raise ValueError(
                f"`GhostBatchNorm({self.num_features})` takes [B, {self.num_features}, ...] of 2 to 5 axes, got "
                f"{list(input.shape)}."
            )


def convert_ghost_batchnorm(module: Module, ghost_size: int = 128) -> Module:
    """Replace every BatchNorm in a module by `GhostBatchNorm`, in place.

        y = gamma (x - mean_g) / sqrt(var_g + eps) + beta      g is the ghost of a sample

    Parameters and running statistics are the same tensors as before, so an optimizer that has them goes on, and a
    checkpoint of either loads into the other. Hooks on a BatchNorm are lost.

    Paper: Hoffer, Hubara and Soudry, "Train longer, generalize better" (NeurIPS 2017).

    Deviations: none. `SyncBatchNorm` is left alone, it has the statistics of all ranks on purpose.

    Args:
        module: Its BatchNorm1d, 2d and 3d are replaced, under all the names that one has.
        ghost_size: Samples of a ghost. Default: the paper's.

    Returns:
        `module`, or what replaces it if it is a BatchNorm itself.

    Raises:
        ValueError: If `ghost_size` is below 1, a lazy BatchNorm has not seen its first batch, or a subclass has a
            `forward` of its own (timm's `BatchNormAct2d` has its activation there); nothing is replaced then.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> type(convert_ghost_batchnorm(model, ghost_size=32)[1]).__name__
        'GhostBatchNorm'
    """
    _require_whole("convert_ghost_batchnorm", ghost_size=ghost_size)
    for child in module.modules():  # before any is replaced
        _refuse(child)
    return _converted(module, ghost_size, {})


def _memory_format(input: Tensor) -> torch.memory_format:
    """That of the output, which the convolutions after it are spared a copy by."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.ndim, torch.contiguous_format)
    return channels_last if input.is_contiguous(memory_format=channels_last) else torch.contiguous_format


def _converted(module: Module, ghost_size: int, done: dict[nn.Module, nn.Module]) -> Module:
    if module in done:
        return done[module]  # pyright: ignore[reportReturnType]  # a BatchNorm that is there twice is one
    done[module] = new = _ghost(module, ghost_size) if _is_batch_norm(module) else module
    for name, child in list(module._modules.items()):  # every name: `named_children` has a module once per parent
        if child is not None:
            setattr(new, name, _converted(child, ghost_size, done))
    return new  # pyright: ignore[reportReturnType]


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and not isinstance(module, GhostBatchNorm | nn.SyncBatchNorm)


def _refuse(module: nn.Module) -> None:
    """Refuse a BatchNorm that `GhostBatchNorm` is no replacement for."""
    if not _is_batch_norm(module):
        return
    name = type(module).__name__
    if getattr(module.forward, "__func__", None) is not _BatchNorm.forward:
        raise ValueError(
            f"`convert_ghost_batchnorm(module=...)` must have no BatchNorm with a `forward` of its own, got {name}: "
            "what it does beside, such as its activation, would be lost. Build the model with torch's BatchNorm, or "
            "convert the parts without it."
        )
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            f"`convert_ghost_batchnorm(module=...)` must have no {name} that has not seen a batch. Send one through it "
            "first."
        )


def _ghost(norm: nn.Module, ghost_size: int) -> GhostBatchNorm:
    assert isinstance(norm, _BatchNorm)
    new = GhostBatchNorm(
        norm.num_features, ghost_size, norm.eps, norm.momentum, affine=False, track_running_stats=False
    )
    new.affine, new.track_running_stats, new.training = norm.affine, norm.track_running_stats, norm.training
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))
    return new


def _check(num_features: int, ghost_size: int, eps: float, momentum: float | None) -> None:
    _require_whole("GhostBatchNorm", num_features=num_features, ghost_size=ghost_size)
    if not 0.0 < eps < float("inf"):
        raise ValueError(f"`GhostBatchNorm(eps=...)` must be greater than 0 and finite, got {eps}.")
    if momentum is not None and not 0.0 <= momentum <= 1.0:
        raise ValueError(f"`GhostBatchNorm(momentum=...)` must be None or in [0, 1], got {momentum}.")


def _require_whole(call: str, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{call}({name}=...)` must be a whole number of at least 1, got {value!r}.")
