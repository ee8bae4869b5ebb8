# SPDX-License-Identifier: Apache-2.0
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lightning_stable.functional import attention_statistics
from lightning_stable.monitors.attention_tap import AttentionTap

ORIGINALS = F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was():
    yield
    assert (F.scaled_dot_product_attention, F.multi_head_attention_forward, F.softmax) == ORIGINALS


class Calls(nn.Module):
    """Calls attention as it is told."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tapped(module, *inputs, **options):
    tap = AttentionTap(module, **options)
    tap.attach()
    try:
        return module(*inputs), tap
    finally:
        tap.detach()


def assert_seen(tap, path, entropy, max_logit):
    (seen,) = tap.seen[path]
    torch.testing.assert_close(seen.entropy, entropy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen.max_logit, max_logit, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"attn_mask": random(6, 6) > 0}, {"attn_mask": random(2, 4, 6, 6)}, {"scale": 2.0}],
    ids=["plain", "causal", "boolean", "floats", "scale"],
)
@pytest.mark.parametrize("heads_of_k", [4, 2])
def test_what_is_seen_is_what_the_functional_says_and_the_output_is_the_same_bit_for_bit(options, heads_of_k):
    q, k = random(2, 4, 6, 8), random(2, heads_of_k, 6, 8, seed=1)
    module = Calls(enable_gqa=heads_of_k != 4, **options)
    output, tap = tapped(module, q, k, k, max_queries=4)
    assert torch.equal(output, module(q, k, k))
    entropy, max_logit = attention_statistics(q, k, max_queries=4, **options)
    assert_seen(tap, "Calls", entropy.mean(0), max_logit.amax(0))
    assert tap.seen["Calls"][0].keys == 6


@pytest.mark.parametrize(
    ("bias", "diagonal"), [(causal_upper_left, 0), (causal_lower_right, 2)], ids=["upper left", "lower right"]
)
def test_causal_biases_of_torch_are_understood(bias, diagonal):
    q, k = random(2, 4, 6, 8), random(2, 4, 8, 8, seed=1)
    module = Calls(attn_mask=bias(6, 8))
    output, tap = tapped(module, q, k, k)
    assert torch.equal(output, module(q, k, k))
    mask = torch.ones(6, 8, dtype=torch.bool).tril(diagonal)
    entropy, max_logit = attention_statistics(q, k, attn_mask=mask)
    assert_seen(tap, "Calls", entropy.mean(0), max_logit.amax(0))


@pytest.mark.parametrize("dimensions", [2, 3, 5])
def test_other_numbers_of_dimensions(dimensions):
    shape = (3, 2, 4, 6, 8)[-dimensions:]
    q = random(*shape)
    _, tap = tapped(Calls(), q, q, q)
    entropy, max_logit = attention_statistics(q, q)
    heads = 4 if dimensions == 5 else 1  # [batch * heads, T, d] does not say how many
    assert_seen(tap, "Calls", entropy.reshape(-1, heads).mean(0), max_logit.reshape(-1, heads).amax(0))


def test_a_learned_mask_and_gradients_are_left_alone():
    q = random(2, 4, 6, 8).requires_grad_()
    mask = nn.Parameter(random(6, 6))
    module = Calls(attn_mask=mask)
    gradients = []
    for output in (tapped(module, q, q, q)[0], module(q, q, q)):
        gradients.append(torch.autograd.grad(output.square().sum(), (q, mask)))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def mha(**options):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, **options)


def explicit(module, x, mask=None):
    """Entropy and largest logit of `module` on `x` [batch, T, 8]."""
    q, k, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k))
    entropy, max_logit = attention_statistics(q.detach(), k.detach(), attn_mask=mask)
    return entropy.mean(0), max_logit.amax(0)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both"])
def test_multi_head_attention_is_seen_with_weights_and_without(need_weights, masks):
    module, x = mha(batch_first=True), random(3, 6, 8)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    options = {"need_weights": need_weights}
    visible = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    if masks in ("causal", "both"):
        options["attn_mask"] = future
        visible = visible & ~future
    if masks in ("padding", "both"):
        options["key_padding_mask"] = padding
        visible = visible & ~padding[:, None, None]
    call = functools.partial(module, **options)
    tap = AttentionTap(module)
    tap.attach()
    output, weights = call(x, x, x)
    tap.detach()
    assert torch.equal(output, call(x, x, x)[0])
    assert (weights is not None) == need_weights
    assert_seen(tap, "MultiheadAttention", *explicit(module, x, visible))


def test_multi_head_attention_without_a_batch():
    module, x = mha(), random(6, 8)
    output, tap = tapped(module, x, x, x)
    assert torch.equal(output[0], module(x, x, x)[0])
    assert_seen(tap, "MultiheadAttention", *explicit(module, x[None]))


def test_a_transformer_encoder_of_torch_is_seen_layer_by_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    output, tap = tapped(module, random(3, 6, 8))
    assert torch.equal(output, module(random(3, 6, 8)))
    assert list(tap.seen) == ["layers.0.self_attn", "layers.1.self_attn"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"attn": Calls()})
        self.helper = lambda q: F.scaled_dot_product_attention(q, q, q)

    def forward(self, q):
        self.inner["attn"](q, q, q)
        self.inner["attn"](q, q, 2 * q)
        return self.helper(q)


def test_the_path_is_that_of_the_innermost_module_and_calls_are_kept_apart():
    _, tap = tapped(Nested(), random(1, 2, 3, 4))
    assert {path: len(calls) for path, calls in tap.seen.items()} == {"inner.attn": 2, "Nested": 1}


def test_calls_from_elsewhere_are_ignored():
    q = random(1, 2, 3, 4)
    tap = AttentionTap(Nested())
    tap.attach()
    F.scaled_dot_product_attention(q, q, q)
    Calls()(q, q, q)
    tap.detach()
    assert tap.seen == {}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_read_is_named_and_left_out():
    nested = torch.nested.nested_tensor([random(3, 2, 4), random(5, 2, 4)], layout=torch.jagged).transpose(1, 2)
    _, tap = tapped(Calls(), nested, nested, nested)
    assert tap.unreadable == {"Calls": "NestedTensor"}
    q = random(2, 2, 3, 4)
    module = Calls()
    tap = AttentionTap(module)
    tap.attach()
    torch.func.vmap(lambda q: module(q, q, q))(q)
    tap.detach()
    assert tap.seen == {}
    assert list(tap.unreadable) == ["Calls"]


def test_an_empty_batch_is_passed_over():
    q = random(0, 2, 3, 4)
    _, tap = tapped(Calls(), q, q, q)
    assert tap.seen == {}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_taps_see_the_same_and_leave_in_any_order(order):
    q, module = random(1, 2, 6, 4), Calls()
    taps = [AttentionTap(module), AttentionTap(module, max_queries=2, uncompile=True)]
    for tap in taps:
        tap.attach()
    module(q, q, q)
    taps[order[0]].detach()
    assert F.scaled_dot_product_attention is not ORIGINALS[0]
    module(q, q, q)
    taps[order[1]].detach()
    taps[order[1]].detach()
    assert F.scaled_dot_product_attention is ORIGINALS[0]
    assert [len(taps[index].seen["Calls"]) for index in order] == [1, 2]


def test_the_function_is_back_while_the_original_runs_and_after_it_fails():
    q = random(1, 2, 3, 4)
    tap = AttentionTap(Calls())
    tap.attach()
    replaced = F.scaled_dot_product_attention
    with pytest.raises(RuntimeError, match="Expected size"):
        F.scaled_dot_product_attention(q, q[..., :3], q)
    with pytest.raises(TypeError, match="missing"):
        F.scaled_dot_product_attention()
    assert F.scaled_dot_product_attention is replaced
    tap.detach()


def test_who_wraps_the_function_meanwhile_keeps_it_and_it_still_works():
    q, module = random(1, 2, 3, 4), Calls()
    tap = AttentionTap(module)
    tap.attach()
    ours = F.scaled_dot_product_attention
    theirs = F.scaled_dot_product_attention = lambda *args, **kwargs: ours(*args, **kwargs)
    tap.detach()
    try:
        assert F.scaled_dot_product_attention is theirs
        assert torch.equal(module(q, q, q), ORIGINALS[0](q, q, q))
        assert tap.seen == {}
    finally:
        F.scaled_dot_product_attention = ORIGINALS[0]


class Recomputed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(4, 4)
        self.options = options

    def block(self, x):
        h = self.proj(x)[None, None]
        h = F.scaled_dot_product_attention(h, h, h).sin()
        return torch.bmm(h[0], self.proj.weight[None]).sin()

    def forward(self, x):
        return checkpoint(self.block, x, **self.options)


def save_products(ctx, op, *args, **kwargs):
    products = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("kind", ["reentrant", "plain", "selective"])
def test_gradients_under_activation_checkpointing_are_the_same_bit_for_bit(kind):
    options = {"use_reentrant": kind == "reentrant"}
    if kind == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, save_products)
    module, x = Recomputed(**options), random(6, 4).requires_grad_()
    gradients = []
    for watch in (False, True):
        output, tap = tapped(module, x) if watch else (module(x), None)
        module.zero_grad()
        output.sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert len(tap.seen["Recomputed"]) == 1
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("uncompile", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules_run_untouched_or_uncompiled(backend, uncompile):
    torch._dynamo.reset()
    frames = []

    def counting(graph, inputs):
        frames.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    q = random(1, 2, 3, 4)
    module = nn.Sequential()
    module.add_module("attn", torch.compile(Attends(), backend=counting, fullgraph=True))
    before = module(q)
    for _ in range(3):
        output, tap = tapped(module, q, uncompile=uncompile)
        assert torch.equal(output, before)
        assert list(tap.seen) == (["attn"] if uncompile else [])
        assert torch.equal(module(q), before)
    assert len(frames) == (1 if uncompile else 2)  # untouched is compiled once more, and no more
    torch._dynamo.reset()


class Attends(nn.Module):
    def forward(self, q):
        return F.scaled_dot_product_attention(q, q, q)
