# SPDX-License-Identifier: Apache-2.0
"""A small GPT: decoder-only transformer over bytes, as plain as it can be."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_stable.testbeds.arguments import require_at_least, require_dropout, require_one_of

# B samples, T positions, H heads, D channels
NormPlacement = Literal["pre", "post"]


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(D/H)) v, through `scaled_dot_product_attention`.

    The function is looked up in `torch.nn.functional` at every call, so that a monitor can watch it.

    Args:
        d_model: Channels.
        n_head: Heads; they divide the channels.
        dropout: Chance of dropping an attention weight, or a channel of the result.
        causal: Whether a position sees only itself and what came before.

    Example:
        >>> import torch
        >>> Attention(d_model=8, n_head=2)(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, d_model: int, n_head: int, dropout: float = 0.0, causal: bool = True) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.causal = causal
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of `x` [B, T, D]."""
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)  # [B, H, T, D/H]
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class MLP(nn.Module):
    """The two-layer perceptron of a transformer block, W2 gelu(W1 x), four times as wide inside.

    Args:
        d_model: Channels.
        dropout: Chance of dropping a channel of the result.

    Example:
        >>> import torch
        >>> MLP(d_model=8)(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, d_model: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc = nn.Linear(d_model, 4 * d_model)
        self.proj = nn.Linear(4 * d_model, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map every position of `x` [B, T, D]."""
        return F.dropout(self.proj(F.gelu(self.fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """One transformer block: attention, then MLP, each with a residual connection and a norm.

        pre:   x + f(norm(x))
        post:  norm(x + f(x))

    Args:
        d_model: Channels.
        n_head: Heads.
        dropout: As in `Attention` and `MLP`.
        norm_placement: Where the norm sits.
        causal: As in `Attention`.

    Example:
        >>> import torch
        >>> Block(d_model=8, n_head=2, norm_placement="post")(torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        dropout: float = 0.0,
        norm_placement: NormPlacement = "pre",
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.norm_placement = norm_placement
        self.attn_norm = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_head, dropout, causal)
        self.mlp_norm = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [B, T, D]."""
        x = self._residual(x, self.attn_norm, self.attn)
        return self._residual(x, self.mlp_norm, self.mlp)

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_placement == "pre":
            return x + branch(norm(x))
        return norm(x + branch(x))


class GPT(nn.Module):
    """A decoder-only transformer with learned positions.

        x = scale * token[tokens] + position;  x = block_l(x);  logits = head(norm(x)), the norm only for `pre`

    Paper: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, for architecture and
    initialisation: N(0, 0.02), divided by sqrt(2 n_layer) for the matrices that end a residual branch.
    Deviations: exact GELU; the head has no bias; embeddings can be scaled per sample, to inject faults.

    Args:
        vocab_size: How many tokens there are; 256 for bytes.
        n_layer: Blocks.
        n_head: Attention heads of a block.
        d_model: Channels.
        context: The most positions a sample may have.
        dropout: Chance of dropping an embedding channel, an attention weight or a channel of a branch.
        norm_placement: `pre` or `post`, see `Block`.
        tie_head: Whether the head is the token embedding.

    Raises:
        ValueError: If an argument is out of bounds, or a sample is longer than `context`.

    Example:
        >>> import torch
        >>> gpt = GPT(n_layer=1, n_head=2, d_model=8, context=4)
        >>> gpt(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 256])
    """

    def __init__(
        self,
        vocab_size: int = 256,
        n_layer: int = 4,
        n_head: int = 4,
        d_model: int = 128,
        context: int = 128,
        dropout: float = 0.0,
        norm_placement: NormPlacement = "pre",
        tie_head: bool = True,
    ) -> None:
        super().__init__()
        require_at_least("GPT", 1, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, context=context)
        if d_model < 1 or d_model % n_head:
            raise ValueError(f"`GPT(d_model=...)` must be a multiple of n_head={n_head}, got {d_model}.")
        require_dropout("GPT", dropout)
        require_one_of("GPT", get_args(NormPlacement), norm_placement=norm_placement)
        self.context = context
        self.dropout = dropout
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_head, dropout, norm_placement) for _ in range(n_layer))
        self.norm = nn.LayerNorm(d_model) if norm_placement == "pre" else nn.Identity()
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_head:
            self.head.weight = self.token.weight
        initialize_gpt_(self)

    def forward(self, tokens: Tensor, embedding_scale: Tensor | None = None) -> Tensor:
        """Return the logits [B, T, vocab_size] of the token that follows each position.

        Args:
            tokens: [B, T] integers, T at most `context`.
            embedding_scale: [B] factors of the token embeddings of each sample; ones change nothing, not a bit.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"`GPT(context={self.context})` was given {length} tokens. Raise `context`.")
        x = self.token(tokens)
        if embedding_scale is not None:
            x = x * embedding_scale.to(x.dtype)[:, None, None]
        x = F.dropout(x + self.position.weight[:length], self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def initialize_gpt_(module: nn.Module, std: float = 0.02) -> None:
    """Initialise linear layers and embeddings of a transformer in place, as GPT-2 does.

    Args:
        module: Its `Block`s count as the layers.
        std: Standard deviation of the normal distribution; 0.02 as in GPT-2.

    Example:
        >>> block = Block(d_model=64, n_head=1)
        >>> initialize_gpt_(block)
        >>> round(block.mlp.proj.weight.std().item() * 2**0.5, 2)
        0.02
    """
    n_layer = sum(isinstance(child, Block) for child in module.modules())
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)
    for child in module.modules():
        if isinstance(child, Attention | MLP):
            nn.init.normal_(child.proj.weight, std=std / math.sqrt(2 * max(1, n_layer)))
