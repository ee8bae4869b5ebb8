# SPDX-License-Identifier: Apache-2.0
"""See every attention that a model computes, without a change to the model: tap the functions of torch that compute it.

While a tap is attached, three functions in `torch.nn.functional` are replaced by ones that call the original, hand on
what it returned, and then look at the arguments:

    scaled_dot_product_attention     q, k and the mask are there
    multi_head_attention_forward     `nn.MultiheadAttention`; with `need_weights=True` it does not call the above, but
                                     softmax, whose argument is the logits; replaced only while this one runs
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_stable.functional import attention_statistics, softmax_statistics

_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}  # in the paths of wrapped modules
_ATTACHED: list["AttentionTap"] = []
_UNDO = ExitStack()


@dataclass
class SeenAttention:
    """What one call of attention looked like; per head, over all samples.

    Args:
        entropy: Mean entropy in nats [heads].
        max_logit: Largest logit [heads].
        keys: How many keys there were.

    Example:
        >>> SeenAttention(torch.zeros(2), torch.ones(2), keys=8).keys
        8
    """

    entropy: Tensor
    max_logit: Tensor
    keys: int


class AttentionTap:
    """Collects statistics of every attention computed inside a module, by the module that computes it.

    Any number of taps may be attached at once, and detached in any order. Code that torch.compile has compiled runs
    untouched and is not seen, unless `uncompile` makes it run as plain Python while the tap is attached.

    Args:
        module: The module; calls from elsewhere are ignored.
        max_queries: As in `attention_entropy`.
        uncompile: Whether compiled code runs uncompiled while the tap is attached.

    Example:
        >>> module = nn.MultiheadAttention(embed_dim=4, num_heads=2)
        >>> tap = AttentionTap(module)
        >>> tap.attach()
        >>> x = torch.zeros(8, 1, 4)
        >>> _ = module(x, x, x)
        >>> tap.detach()
        >>> tap.seen["MultiheadAttention"][0].entropy.shape
        torch.Size([2])
    """

    def __init__(self, module: nn.Module, max_queries: int | None = None, uncompile: bool = False) -> None:
        self.seen: dict[str, list[SeenAttention]] = {}
        self.unreadable: dict[str, str] = {}  # from module to what its tensors are
        self.uncompile = uncompile
        self._max_queries = max_queries
        self._module = module  # as long as it lives no other module has its id
        self._paths = {id(child): _path(name) or type(module).__name__ for name, child in module.named_modules()}

    def attach(self) -> None:
        """Begin to look."""
        if not _ATTACHED:
            _replace("scaled_dot_product_attention", _tapped_attention)
            _replace("multi_head_attention_forward", _tapped_multi_head_attention)
        if self.uncompile and not any(tap.uncompile for tap in _ATTACHED):
            _UNDO.enter_context(torch.compiler.set_stance("force_eager"))
        _ATTACHED.append(self)

    def detach(self) -> None:
        """Look no more; the last tap's going leaves `torch.nn.functional` as it was."""
        if self in _ATTACHED:
            _ATTACHED.remove(self)
            if not _ATTACHED:
                _UNDO.close()

    def see(self, tensors: list[Any], statistics: Callable[[int | None], tuple[Tensor, Tensor]], keys: int) -> None:
        """Keep the `statistics` of an attention that has just been computed from `tensors`."""
        path = self._running()
        if path is None:
            return
        strange = [tensor for tensor in tensors if not _is_plain(tensor)]
        if strange:
            self.unreadable[path] = type(strange[0]).__name__
            return
        # modes off: selective checkpointing takes every operation in the forward pass for one of the model's
        with torch.no_grad(), _disable_current_modes():
            entropy, max_logit = statistics(self._max_queries)
            if entropy.numel() == 0:
                return
            heads = entropy.shape[-1] if entropy.ndim > 1 else 1  # [batch * heads, T, d] hides its heads
            seen = SeenAttention(entropy.view(-1, heads).mean(0), max_logit.view(-1, heads).amax(0), keys)
        self.seen.setdefault(path, []).append(seen)

    def _running(self) -> str | None:
        """The path of the innermost module that is running now: a method's first argument is the module."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_argcount:
                owner = frame.f_locals.get(code.co_varnames[0])
                if isinstance(owner, nn.Module) and id(owner) in self._paths:
                    return self._paths[id(owner)]
            frame = frame.f_back
        return None


def _path(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is neither nested, nor sharded, nor quantised, nor inside of `torch.func`."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_nested
        and tensor.layout == torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    )


def _replace(name: str, tapped: Callable[[Any], Any]) -> None:
    original = getattr(F, name)
    replacement = tapped(original)
    setattr(F, name, replacement)

    def undo() -> None:
        if getattr(F, name) is replacement:  # else somebody has wrapped us: stay underneath, there is nothing we do
            setattr(F, name, original)

    _UNDO.callback(undo)


@contextmanager
def _instead(name: str, function: Any) -> Iterator[None]:
    replaced = getattr(F, name)
    setattr(F, name, function)
    try:
        yield
    finally:
        setattr(F, name, replaced)


def _tapped_attention(original: Any) -> Any:
    @functools.wraps(original)
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _ATTACHED:
            return original(*args, **kwargs)
        with _instead("scaled_dot_product_attention", original):  # tensor subclasses compare with the one in F
            output = original(*args, **kwargs)
        _see_attention(*args, **kwargs)
        return output

    return scaled_dot_product_attention


def _see_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    q, k, mask = query.detach(), key.detach(), _as_plain_mask(attn_mask, query.device)

    def statistics(max_queries: int | None) -> tuple[Tensor, Tensor]:
        return attention_statistics(q, k, is_causal=is_causal, attn_mask=mask, scale=scale, max_queries=max_queries)

    for tap in list(_ATTACHED):
        tap.see([q, k] if mask is None else [q, k, mask], statistics, keys=k.shape[-2])


def _as_plain_mask(mask: Any, device: torch.device) -> Any:
    """The mask itself; for torch's `CausalBias`, which holds no numbers, what it stands for."""
    if mask is None or type(mask) is Tensor:
        return mask
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(mask, CausalBias):
        return mask.detach()
    queries, keys = mask.seq_len_q, mask.seq_len_kv
    diagonal = 0 if mask.variant == CausalVariant.UPPER_LEFT else keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal)


def _tapped_multi_head_attention(original: Any) -> Any:
    @functools.wraps(original)
    def multi_head_attention_forward(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _ATTACHED:
            return original(*args, **kwargs)
        num_heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
        with _instead("multi_head_attention_forward", original), _instead("softmax", _tapped_softmax(num_heads)):
            return original(*args, **kwargs)

    return multi_head_attention_forward


def _tapped_softmax(num_heads: int) -> Any:
    original = F.softmax

    @functools.wraps(original)
    def softmax(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = original(logits, *args, **kwargs)
        heads = logits.detach().unflatten(0, (-1, num_heads))  # [batch * heads, T, S]

        def statistics(max_queries: int | None) -> tuple[Tensor, Tensor]:
            return softmax_statistics(heads, max_queries=max_queries)

        for tap in list(_ATTACHED):
            tap.see([heads], statistics, keys=heads.shape[-1])
        return output

    return softmax
