# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from lightning_stable.testbeds import GPT
from lightning_stable.testbeds.gpt import Block, initialize_gpt_

TINY = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "d_model": 8, "context": 6}


def linear(x, w, name):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def norm(x, w, name):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(stream, w, name, n_head=2):
    d_head = len(stream[0]) // n_head
    q, k, v = zip(*(linear(x, w, f"{name}.qkv").chunk(3) for x in stream), strict=True)
    mixed = []
    for t in range(len(stream)):
        heads = []
        for h in range(n_head):
            one = slice(h * d_head, (h + 1) * d_head)
            scores = torch.stack([q[t][one] @ k[s][one] / math.sqrt(d_head) for s in range(t + 1)])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(shares[s] * v[s][one] for s in range(t + 1)))
        mixed.append(linear(torch.cat(heads), w, f"{name}.proj"))
    return mixed


def mlp(stream, w, name):
    hidden = [linear(x, w, f"{name}.fc") for x in stream]
    return [linear(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), w, f"{name}.proj") for h in hidden]


def residual(stream, branch, w, name, norm_placement):
    if norm_placement == "pre":
        changes = branch([norm(x, w, f"{name}_norm") for x in stream], w, name)
        return [x + change for x, change in zip(stream, changes, strict=True)]
    changes = branch(stream, w, name)
    return [norm(x + change, w, f"{name}_norm") for x, change in zip(stream, changes, strict=True)]


def reference_gpt(w, tokens, n_layer, norm_placement, scale):
    """The forward pass of one sample in float64, position by position."""
    stream = [scale * w["token.weight"][token] + w["position.weight"][t] for t, token in enumerate(tokens)]
    for layer in range(n_layer):
        stream = residual(stream, attention, w, f"blocks.{layer}.attn", norm_placement)
        stream = residual(stream, mlp, w, f"blocks.{layer}.mlp", norm_placement)
    if norm_placement == "pre":
        stream = [norm(x, w, "norm") for x in stream]
    return torch.stack([w["head.weight"] @ x for x in stream])


def scrambled(**kwargs):
    """A model whose norms and biases are no longer trivial."""
    torch.manual_seed(0)
    gpt = GPT(**TINY | kwargs)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return gpt


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
@pytest.mark.parametrize("tie_head", [True, False])
def test_matches_reference(norm_placement, tie_head):
    gpt = scrambled(norm_placement=norm_placement, tie_head=tie_head).double()
    tokens, scales = torch.randint(11, (3, 5)), torch.tensor([1.0, 0.5, 3.0])
    logits = gpt(tokens, scales)
    for i in range(3):
        expected = reference_gpt(gpt.state_dict(), tokens[i].tolist(), 2, norm_placement, scales[i].item())
        torch.testing.assert_close(logits[i], expected, rtol=1e-9, atol=1e-9)


def test_a_position_does_not_see_what_follows():
    gpt = scrambled()
    tokens = torch.randint(11, (1, 6))
    changed = tokens.clone()
    changed[0, 4:] = (changed[0, 4:] + 1) % 11
    assert torch.equal(gpt(tokens)[:, :4], gpt(changed)[:, :4])
    assert not torch.equal(gpt(tokens)[:, 4:], gpt(changed)[:, 4:])


def test_an_embedding_scale_of_one_changes_nothing():
    gpt = scrambled()
    tokens = torch.randint(11, (3, 6))
    assert torch.equal(gpt(tokens), gpt(tokens, torch.ones(3)))


def test_an_embedding_scale_of_nan_spoils_its_own_sample_only():
    gpt = scrambled()
    tokens = torch.randint(11, (3, 6))
    logits = gpt(tokens, torch.tensor([1.0, float("nan"), 1.0]))
    assert logits[1].isnan().all()
    assert torch.equal(logits[::2], gpt(tokens)[::2])


def test_initial_weights_are_those_of_gpt2():
    torch.manual_seed(0)
    gpt = GPT(n_layer=8, d_model=128)
    assert gpt.token.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt.position.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for block in gpt.blocks:
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.mlp.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert not block.mlp.fc.bias.any()
        assert torch.equal(block.attn_norm.weight, torch.ones(128))


def test_a_transformer_without_blocks_can_be_initialised():
    linear = torch.nn.Linear(64, 64, bias=False)
    initialize_gpt_(linear, std=0.5)
    assert linear.weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_a_tied_head_is_the_embedding_and_counts_once():
    tied, free = GPT(**TINY), GPT(**TINY, tie_head=False)
    assert tied.head.weight is tied.token.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 8


def test_module_paths_and_buffers():
    gpt = GPT(**TINY)
    assert "blocks.1.attn" in dict(gpt.named_modules())
    assert not list(gpt.buffers())


def test_attention_is_looked_up_at_every_call(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        calls.append(kwargs["is_causal"])
        return original(*args, **kwargs)

    gpt = GPT(**TINY)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    gpt(torch.zeros(1, 3, dtype=torch.int64))
    assert calls == [True, True]


def test_dropout_acts_in_training_and_not_in_evaluation():
    gpt = GPT(**TINY, dropout=0.5)
    tokens = torch.randint(11, (2, 6))
    assert not torch.equal(gpt(tokens), gpt(tokens))
    gpt.eval()
    assert torch.equal(gpt(tokens), gpt(tokens))


def test_a_block_that_is_not_causal_sees_everything():
    x = torch.randn(1, 4, 8)
    changed = x.clone()
    changed[0, 3] = -x[0, 3]
    block = Block(8, 2, causal=False)
    assert not torch.equal(block(x)[:, 0], block(changed)[:, 0])


def test_bf16_weights_take_a_scale_in_float32():
    gpt = GPT(**TINY).bfloat16()
    assert gpt(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2)).dtype == torch.bfloat16


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (0, 3), (2, 6)])
def test_shapes_at_the_edges(batch, length):
    assert GPT(**TINY)(torch.zeros(batch, length, dtype=torch.int64)).shape == (batch, length, 11)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_layer": 0}, r"`GPT\(n_layer=\.\.\.\)` must be at least 1, got 0\."),
        ({"context": 0}, r"`GPT\(context=\.\.\.\)` must be at least 1, got 0\."),
        ({"d_model": 9}, r"`GPT\(d_model=\.\.\.\)` must be a multiple of n_head=2, got 9\."),
        ({"dropout": 1.0}, r"`GPT\(dropout=\.\.\.\)` must be in \[0, 1\), got 1\.0\."),
        (
            {"norm_placement": "sandwich"},
            r"`GPT\(norm_placement=\.\.\.\)` must be one of 'pre', 'post', got 'sandwich'\.",
        ),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GPT(**TINY | kwargs)


def test_a_sample_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"`GPT\(context=6\)` was given 7 tokens\. Raise `context`\."):
        GPT(**TINY)(torch.zeros(1, 7, dtype=torch.int64))
