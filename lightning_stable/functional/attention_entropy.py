# SPDX-License-Identifier: Apache-2.0
"""How far attention is spread: the entropy of its rows, their largest logit, and what bounds the entropy from below.

    p = softmax(l),  H = -sum_j p_j log p_j = log sum_j exp(z_j) - sum_j p_j z_j,  z = l - max l

Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (ICML 2023).
"""

import math
from typing import overload

import torch
from torch import Tensor

# T queries, S keys, d channels; "..." are leading dimensions, the last of them the heads
_CHUNK = 2**24  # logits held at once; 64 MiB in float32
_NOTHING = -1e3  # exp of it is 0 in every dtype, and so is 0 times it


def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    max_queries: int | None = None,
) -> Tensor:
    """Return the mean entropy in nats of the attention rows of every sample and head.

        l = scale * q k^T + mask,  H_i = -sum_j p_ij log p_ij with p = softmax(l),  mean over the queries i

    Paper: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (ICML 2023).

    Deviations: a query that may attend to nothing has no distribution and is left out of the mean; where no query is
    left the entropy is 0. The arguments mean what they mean to `torch.nn.functional.scaled_dot_product_attention`.
    Computed in float32 at least, also under autocast, and without dropout; NaN in, NaN out.

    Args:
        q: Queries [..., T, d], usually [batch, heads, T, d]; any number of leading dimensions.
        k: Keys [..., S, d]. With fewer heads than `q`, each serves a group of them (grouped-query attention).
        is_causal: Query i sees the keys 0..i, also where T and S differ.
        attn_mask: Broadcastable to [..., T, S]; boolean, True where a key takes part, or floats to be added.
        scale: Factor of the logits. Default: 1/sqrt(d).
        max_queries: Use only so many queries, evenly spaced, the last one among them. Default: all.

    Raises:
        ValueError: If shapes do not fit, `attn_mask` is neither boolean nor floating, or comes with `is_causal`.

    Example:
        >>> q = k = torch.zeros(1, 2, 8, 4)
        >>> attention_entropy(q, k)  # log(8): every key counts the same
        tensor([[2.0794, 2.0794]])
    """
    return attention_statistics(q, k, is_causal=is_causal, attn_mask=attn_mask, scale=scale, max_queries=max_queries)[0]


def attention_statistics(
    q: Tensor,
    k: Tensor,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    max_queries: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `attention_entropy` and the largest logit of every sample and head, in one pass.

        (mean_i H_i,  max_ij l_ij),  both [...]

    Paper: Zhai et al. (ICML 2023) for the entropy; Wortsman et al., "Small-scale proxies for large-scale Transformer
    training instabilities" (ICLR 2024) for the largest logit, which grows before a run diverges.

    Deviations: the largest logit is that of the queries used, over keys that take part; -inf where there are none.

    Args:
        q: As in `attention_entropy`.
        k: As in `attention_entropy`.
        is_causal: As in `attention_entropy`.
        attn_mask: As in `attention_entropy`.
        scale: As in `attention_entropy`.
        max_queries: As in `attention_entropy`.

    Raises:
        ValueError: As `attention_entropy`.

    Example:
        >>> q = k = torch.eye(4).expand(1, 1, 4, 4)
        >>> entropy, max_logit = attention_statistics(q, k, scale=200.0)
        >>> entropy.item(), max_logit.item()  # every query looks at itself alone
        (0.0, 200.0)
    """
    q, k, attn_mask, lead = _aligned(q, k, attn_mask, is_causal)
    rows = _rows(q.shape[-2], max_queries, q.device)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = _wide(q.dtype)
    chunk = max(1, _CHUNK // max(1, math.prod(lead) * k.shape[-2]))
    statistics = []
    with torch.autocast(q.device.type, enabled=False):
        keys = k.to(dtype).transpose(-2, -1)
        for some in rows.split(chunk):
            logits = (q[..., some, :].to(dtype) * factor) @ keys
            if is_causal:
                visible = torch.arange(k.shape[-2], device=q.device) <= some[:, None]
                logits = logits.masked_fill_(~visible, -math.inf)
            if attn_mask is not None:
                logits = _masked(logits, attn_mask[..., some, :])
            statistics.append(_of_rows(logits.expand(*lead, *logits.shape[-2:])))
    return _over_queries([torch.cat(parts, dim=-1) for parts in zip(*statistics, strict=True)])


def softmax_statistics(logits: Tensor, *, max_queries: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean entropy in nats and the largest logit of softmax rows, where the logits are at hand.

        (mean_i H(softmax(l_i)),  max_ij l_ij)

    Paper and deviations: as `attention_statistics`. A logit of -inf is a key that takes no part.

    Args:
        logits: [..., T, S], what softmax is applied to along the last dimension.
        max_queries: As in `attention_entropy`.

    Raises:
        ValueError: If `logits` has fewer than two dimensions, or `max_queries` is less than 1.

    Example:
        >>> entropy, max_logit = softmax_statistics(torch.tensor([[0.0, 0.0], [5.0, -torch.inf]]))
        >>> round(entropy.item(), 4), max_logit.item()  # half of log(2)
        (0.3466, 5.0)
    """
    if logits.ndim < 2:
        raise ValueError(
            f"`softmax_statistics(logits=...)` must have at least two dimensions, got {list(logits.shape)}."
        )
    rows = _rows(logits.shape[-2], max_queries, logits.device)
    return _over_queries(_of_rows(logits[..., rows, :].to(_wide(logits.dtype))))


@overload
def attention_entropy_lower_bound(logit_norm: float, keys: int) -> float: ...
@overload
def attention_entropy_lower_bound(logit_norm: Tensor, keys: int) -> Tensor: ...
def attention_entropy_lower_bound(logit_norm: float | Tensor, keys: int) -> float | Tensor:
    """Return the least entropy in nats that a softmax row can have, given how large its logits are.

        beta = exp(-sigma sqrt(T / (T - 1)))
        H   >= log(1 + (T - 1) beta) + sigma sqrt(T (T - 1)) beta / (1 + (T - 1) beta)

    The bound is tight: logits proportional to e_1 - 1/T attain it. It falls from log T at sigma = 0 towards 0, like
    sigma exp(-sigma), which is why growing logits let attention collapse.

    Paper: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (ICML 2023).

    Deviations: sigma is the norm of one row of logits; the paper bounds it further by spectral norms of the weights.

    Args:
        logit_norm: sigma, the l2 norm of a row of logits less its mean; a number, or a tensor of any shape.
        keys: T, the keys that the row attends to; with 1 the bound is 0.

    Raises:
        ValueError: If `keys` is less than 1, or `logit_norm` is a negative number.

    Example:
        >>> [round(attention_entropy_lower_bound(norm, keys=8), 4) for norm in (0.0, 4.0, 16.0)]
        [2.0794, 0.4719, 0.0]
        >>> attention_entropy_lower_bound(torch.tensor([0.0, 4.0]), keys=8)
        tensor([2.0794, 0.4719])
    """
    if keys < 1:
        raise ValueError(f"`attention_entropy_lower_bound(keys=...)` must be at least 1, got {keys}.")
    if not isinstance(logit_norm, Tensor):
        if logit_norm < 0:
            raise ValueError(f"`attention_entropy_lower_bound(logit_norm=...)` must be at least 0, got {logit_norm}.")
        return attention_entropy_lower_bound(torch.tensor(logit_norm, dtype=torch.float64), keys).item()
    sigma = logit_norm.to(_wide(logit_norm.dtype)).clamp(max=-_NOTHING)  # inf * exp(-inf) would be NaN
    if keys == 1:
        return sigma * 0.0
    beta = torch.exp(-sigma * math.sqrt(keys / (keys - 1)))
    return torch.log1p((keys - 1) * beta) + sigma * math.sqrt(keys * (keys - 1)) * beta / (1 + (keys - 1) * beta)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(queries: int, max_queries: int | None, device: torch.device) -> Tensor:
    """The queries used: all, or `max_queries` of them, evenly spaced, the last one among them."""
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"`attention_entropy(max_queries=...)` must be at least 1, got {max_queries}.")
    if max_queries is None or queries <= max_queries:
        return torch.arange(queries, device=device)
    return torch.arange(1, max_queries + 1, device=device) * queries // max_queries - 1


def _aligned(
    q: Tensor, k: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor | None, torch.Size]:
    """Keys with a head for every head of the queries, the mask with a row for every query, and the shape `...`."""
    if q.ndim < 2 or k.ndim < 2 or q.shape[-1] != k.shape[-1] or q.shape[-1] < 1 or not q.is_floating_point():
        raise ValueError(
            "`attention_entropy(q, k)` must be floating tensors [..., T, d] and [..., S, d] with the same d, at least "
            f"1, got {q.dtype} {list(q.shape)} and {k.dtype} {list(k.shape)}."
        )
    if attn_mask is not None and is_causal:
        raise ValueError("`attention_entropy(attn_mask=..., is_causal=True)`: give one of the two, not both.")
    if attn_mask is not None and attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(f"`attention_entropy(attn_mask=...)` must be boolean or floating, got {attn_mask.dtype}.")
    if q.ndim > 2 and k.ndim > 2 and 1 < k.shape[-3] < q.shape[-3] and q.shape[-3] % k.shape[-3] == 0:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    mask_shape = attn_mask.shape if attn_mask is not None else ()
    full = (q.shape[-2], k.shape[-2])
    try:
        shape = torch.broadcast_shapes((*q.shape[:-2], *full), (*k.shape[:-2], *full), mask_shape)
    except RuntimeError:
        shape = torch.Size()
    if shape[-2:] != full:
        raise ValueError(
            f"`attention_entropy(q, k, attn_mask=...)`: shapes {list(q.shape)}, {list(k.shape)} and "
            f"{list(mask_shape)} do not fit. The mask must be broadcastable to [..., T, S], the heads of `k` must "
            "divide those of `q`."
        )
    if attn_mask is not None:
        attn_mask = attn_mask.expand(torch.broadcast_shapes(mask_shape, full))
    return q, k, attn_mask, shape[:-2]


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.to(logits.dtype)


def _of_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and largest logit of every row; a row without keys has -inf for its largest logit."""
    if logits.shape[-1] == 0:
        return logits.new_zeros(logits.shape[:-1]), logits.new_full(logits.shape[:-1], -math.inf)
    largest = logits.amax(dim=-1)
    z = (logits - largest.clamp(min=torch.finfo(logits.dtype).min)[..., None]).clamp_(min=_NOTHING)
    e = z.exp()
    total = e.sum(dim=-1)
    return total.log() - (e * z).sum(dim=-1) / total, largest


def _over_queries(statistics: tuple[Tensor, Tensor] | list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean entropy over the queries that attend to anything, and the largest of the largest logits."""
    entropy, largest = statistics
    if largest.shape[-1] == 0:
        return entropy.sum(dim=-1), largest.sum(dim=-1) - math.inf
    attends = largest != -math.inf
    count = attends.sum(dim=-1).clamp(min=1)
    return torch.where(attends, entropy, 0.0).sum(dim=-1) / count, largest.amax(dim=-1)
