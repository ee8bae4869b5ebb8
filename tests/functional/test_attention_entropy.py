# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from lightning_stable.functional import (
    attention_entropy,
    attention_entropy_lower_bound,
    attention_statistics,
    softmax_statistics,
)
from lightning_stable.functional import attention_entropy as entropy_of

T, S, D = 6, 5, 4


def reference_entropy_and_max(q, k, is_causal=False, attn_mask=None, scale=None, rows=None):
    """-sum p log p of the explicit softmax in float64, query by query."""
    *lead, t, d = q.shape
    heads = q.shape[-3]
    k = k.double().repeat_interleave(heads // k.shape[-3], dim=-3)
    bias = torch.zeros(t, k.shape[-2], dtype=torch.float64)
    if is_causal:
        bias[torch.ones(t, k.shape[-2]).tril() == 0] = -math.inf
    if attn_mask is not None:
        bias = torch.where(attn_mask, 0.0, -math.inf) if attn_mask.dtype == torch.bool else attn_mask.double()
    logits = q.double() @ k.transpose(-2, -1) * (d**-0.5 if scale is None else scale) + bias
    logits = logits.reshape(-1, t, k.shape[-2])
    entropy, largest = [], []
    for one in logits if rows is None else logits[:, rows]:
        kept = [row for row in one if (row > -math.inf).any()]
        each = [-sum(p * p.log() for p in torch.softmax(row, 0) if p > 0) for row in kept]
        entropy.append(torch.stack(each).mean() if each else torch.tensor(0.0, dtype=torch.float64))
        largest.append(one.max())
    return torch.stack(entropy).view(lead), torch.stack(largest).view(lead)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masks():
    boolean = random(2, 3, T, S, seed=5) > -0.5
    boolean[0, 1, 2] = False  # one query that attends to nothing
    floats = random(2, 3, T, S, seed=6)
    floats[..., 0] = -math.inf
    return {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean},
        "boolean of T, S": {"attn_mask": boolean[0, 0]},
        "padding": {"attn_mask": boolean[:, :1, :1]},
        "one row": {"attn_mask": boolean[0, 0, :1]},
        "floats": {"attn_mask": floats},
        "floats of heads": {"attn_mask": floats[0]},
        "scale": {"scale": 3.0},
    }


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("heads_of_k", [3, 1])
def test_it_matches_minus_sum_p_log_p(kind, heads_of_k):
    options = masks()[kind]
    q, k = random(2, 3, T, D, seed=1), random(2, heads_of_k, S, D, seed=2)
    entropy, largest = attention_statistics(q, k, **options)
    expected, expected_largest = reference_entropy_and_max(q, k, **options)
    assert entropy.dtype == torch.float64
    torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(largest, expected_largest, rtol=0, atol=1e-12)
    assert torch.equal(attention_entropy(q, k, **options), entropy)
    single = attention_entropy(q.float(), k.float(), **options)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(T, S), (S, T), (S, S)])
def test_its_rows_are_those_of_scaled_dot_product_attention(queries, keys):
    q, k = random(2, 4, queries, D, seed=1), random(2, 2, keys, D, seed=2)
    for options in ({}, {"is_causal": True}, {"attn_mask": random(queries, keys, seed=3) > -1}, {"scale": 0.3}):
        p = F.scaled_dot_product_attention(
            q, k, torch.eye(keys, dtype=q.dtype).expand(2, 2, keys, keys), enable_gqa=True, **options
        )
        expected = -torch.special.xlogy(p, p).sum(-1)
        expected = expected.sum(-1) / (p.sum(-1) > 0).sum(-1)
        torch.testing.assert_close(attention_entropy(q, k, **options), expected, rtol=0, atol=1e-9)


def test_softmax_statistics_are_the_same_of_logits_at_hand():
    q, k = random(2, 3, T, D, seed=1), random(2, 3, S, D, seed=2)
    logits = q @ k.transpose(-2, -1) / math.sqrt(D)
    for expected, actual in zip(attention_statistics(q, k), softmax_statistics(logits), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for expected, actual in zip(
        attention_statistics(q, k, max_queries=2), softmax_statistics(logits, max_queries=2), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def rows_with_entropy(keys, count=20_000):
    logits = random(count, 1, keys, seed=keys) * torch.linspace(0, 12, count, dtype=torch.float64)[:, None, None]
    norm = (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)[:, 0]
    return softmax_statistics(logits)[0], norm


@pytest.mark.parametrize("keys", [1, 2, 3, 17, 64])
def test_no_row_has_less_entropy_than_the_bound(keys):
    entropy, norm = rows_with_entropy(keys)
    assert (entropy >= attention_entropy_lower_bound(norm, keys) - 1e-9).all()


@pytest.mark.parametrize("keys", [2, 3, 17, 64])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0, 5.0, 20.0])
def test_logits_proportional_to_e_1_less_their_mean_attain_the_bound(keys, sigma):
    u = torch.full((keys,), -1.0 / keys, dtype=torch.float64)
    u[0] += 1
    entropy, _ = softmax_statistics((sigma * u / u.norm())[None])
    bound = attention_entropy_lower_bound(sigma, keys)
    assert entropy.item() == pytest.approx(bound, abs=1e-12)
    assert attention_entropy_lower_bound(torch.tensor([sigma]), keys).item() == pytest.approx(bound, abs=1e-6)


def test_growing_logits_let_the_entropy_collapse():
    q, k = random(1, 2, T, D, seed=1), random(1, 2, S, D, seed=2)
    entropies = [attention_entropy(q * factor, k).max().item() for factor in (0, 1, 10, 100, 1e4, 1e8)]
    assert entropies[0] == pytest.approx(math.log(S))
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] == 0
    bounds = [attention_entropy_lower_bound(norm, 8) for norm in (0.0, 1.0, 10.0, 100.0, 1e9, math.inf)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0


def test_huge_logits_lose_no_digits_in_single_precision():
    logits = torch.tensor([[1e7, 1e7, 1e7 - 1, -3e38]])
    expected, _ = softmax_statistics(torch.tensor([[0.0, 0.0, -1.0, -1e9]], dtype=torch.float64))
    entropy, largest = softmax_statistics(logits)
    assert entropy.item() == pytest.approx(expected.item(), abs=1e-6)
    assert largest.item() == 1e7
    assert softmax_statistics(torch.full((1, 4), torch.finfo(torch.float32).min))[0].item() == pytest.approx(
        math.log(4)
    )


def test_queries_that_attend_to_nothing_are_left_out():
    q, k = random(1, 2, T, D), random(1, 2, S, D, seed=1)
    mask = torch.ones(T, S, dtype=torch.bool)
    mask[2:] = False
    entropy, largest = attention_statistics(q, k, attn_mask=mask)
    expected, expected_largest = attention_statistics(q[..., :2, :], k)
    torch.testing.assert_close(entropy, expected)
    torch.testing.assert_close(largest, expected_largest)
    entropy, largest = attention_statistics(q, k, attn_mask=torch.zeros_like(mask))
    assert entropy.tolist() == [[0.0, 0.0]]
    assert largest.tolist() == [[-math.inf, -math.inf]]


@pytest.mark.parametrize(
    ("max_queries", "rows"), [(1, [5]), (2, [2, 5]), (4, [0, 2, 3, 5]), (6, range(6)), (99, range(6))]
)
def test_queries_are_subsampled_evenly_with_the_last(max_queries, rows):
    q, k = random(2, 3, 6, D, seed=1), random(2, 3, 6, D, seed=2)
    boolean = random(6, 6, seed=3) > -1
    for options in ({"is_causal": True}, {"attn_mask": boolean}):
        before = torch.get_rng_state()
        actual = attention_statistics(q, k, max_queries=max_queries, **options)
        assert torch.equal(before, torch.get_rng_state())
        expected = reference_entropy_and_max(q, k, rows=list(rows), **options)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_any_number_of_leading_dimensions_will_do():
    q, k = random(2, 3, 4, T, D), random(2, 3, 4, S, D, seed=1)
    whole = attention_entropy(q, k, is_causal=True)
    assert whole.shape == (2, 3, 4)
    torch.testing.assert_close(attention_entropy(q[0], k[0], is_causal=True), whole[0])
    torch.testing.assert_close(attention_entropy(q[0, 0], k[0, 0], is_causal=True), whole[0, 0])
    torch.testing.assert_close(attention_entropy(q[0, 0, 0], k[0, 0, 0], is_causal=True), whole[0, 0, 0])
    torch.testing.assert_close(attention_entropy(q, k[:1, :1, :1]), attention_entropy(q, k[:1, :1, :1].expand_as(k)))


def test_long_sequences_are_taken_in_pieces(monkeypatch):
    import sys

    q, k = random(2, 3, T, D), random(2, 3, S, D, seed=1)
    mask = random(2, 1, T, S) > -1
    whole = attention_statistics(q, k, attn_mask=mask), attention_statistics(q, k, is_causal=True)
    monkeypatch.setattr(sys.modules["lightning_stable.functional.attention_entropy"], "_CHUNK", 2 * 3 * S * 2)
    pieces = attention_statistics(q, k, attn_mask=mask), attention_statistics(q, k, is_causal=True)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_also_under_autocast(dtype):
    q, k = random(2, 3, T, D, dtype=dtype), random(2, 3, S, D, seed=1, dtype=dtype)
    expected, _ = reference_entropy_and_max(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy, largest = attention_statistics(q, k)
    assert entropy.dtype == largest.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_is_nan_out_where_it_was(bad):
    q, k = random(2, 3, T, D), random(2, 3, S, D, seed=1)
    q[1, 2, 0, 0] = bad
    k[1, 2] = 1
    entropy = attention_entropy(q, k)
    assert entropy.isnan().sum() == 1
    assert entropy[1, 2].isnan()
    assert math.isnan(attention_entropy_lower_bound(math.nan, 3))


def test_empty_and_smallest_shapes():
    for queries, keys in ((0, S), (T, 0), (0, 0)):
        entropy, largest = attention_statistics(torch.zeros(2, 3, queries, D), torch.zeros(2, 3, keys, D))
        assert torch.equal(entropy, torch.zeros(2, 3))
        assert torch.equal(largest, torch.full((2, 3), -math.inf))
    assert attention_entropy(torch.zeros(0, 3, T, D), torch.zeros(0, 3, S, D)).shape == (0, 3)
    assert attention_entropy(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == 0
    assert attention_entropy_lower_bound(3.0, 1) == 0
    assert attention_entropy_lower_bound(torch.empty(0, 2), 4).shape == (0, 2)
    assert attention_entropy_lower_bound(torch.tensor([1.0], dtype=torch.bfloat16), 4).dtype == torch.float32


def test_non_contiguous_tensors_and_untouched_inputs():
    q, k = random(2, T, 3, D), random(2, S, 3, D, seed=1)
    mask = random(S, T).T
    before = q.clone(), k.clone(), mask.clone()
    actual = attention_entropy(q.transpose(1, 2), k.transpose(1, 2), attn_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip((q, k, mask), before, strict=True))
    expected = attention_entropy(
        q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), attn_mask=mask.contiguous()
    )
    assert torch.equal(actual, expected)


def test_gradients_flow():
    q = random(1, 1, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: attention_entropy(q, q, is_causal=True), q)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_queries": 0}, r"`attention_entropy\(max_queries=\.\.\.\)` must be at least 1, got 0\."),
        ({"attn_mask": torch.ones(T, S).bool(), "is_causal": True}, "give one of the two, not both"),
        ({"attn_mask": torch.ones(T, S).int()}, "must be boolean or floating, got torch.int32"),
        ({"attn_mask": torch.ones(T, S + 1)}, r"\[2, 3, 6, 4\], \[2, 3, 5, 4\] and \[6, 6\] do not fit"),
        ({"k": torch.ones(2, 2, S, D)}, "the heads of `k` must divide those of `q`"),
        ({"k": torch.ones(2, 3, S, D + 1)}, "with the same d"),
        ({"k": torch.ones(D)}, "must be floating tensors"),
        ({"q": torch.ones(2, 3, T, 0), "k": torch.ones(2, 3, S, 0)}, "at least 1"),
        ({"q": torch.ones(2, 3, T, D).int()}, "must be floating tensors"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    arguments = {"q": torch.ones(2, 3, T, D), "k": torch.ones(2, 3, S, D), **arguments}
    with pytest.raises(ValueError, match=message):
        entropy_of(arguments.pop("q"), arguments.pop("k"), **arguments)


def test_bounds_and_logits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"`attention_entropy_lower_bound\(keys=\.\.\.\)` must be at least 1, got 0"):
        attention_entropy_lower_bound(1.0, 0)
    with pytest.raises(ValueError, match=r"`attention_entropy_lower_bound\(logit_norm=\.\.\.\)` must be at least 0"):
        attention_entropy_lower_bound(-1.0, 4)
    with pytest.raises(ValueError, match=r"must have at least two dimensions, got \[3\]"):
        softmax_statistics(torch.zeros(3))
