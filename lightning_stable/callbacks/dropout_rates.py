# SPDX-License-Identifier: Apache-2.0
"""Which attributes of which modules are dropout rates."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

ATTRIBUTES = ("p", "drop_prob", "dropout", "dropout_p", "dropout_prob", "attn_dropout", "attention_dropout")


class DropoutRate(NamedTuple):
    """One dropout rate of a model.

    Args:
        name: Of the module and the attribute, joined by a dot; the same for a module that was compiled.
        module: The module that has it.
        attribute: The name it has there.

    Example:
        >>> rate = next(dropout_rates(nn.Sequential(nn.Dropout(0.25))))
        >>> rate.name, rate.value
        ('0.p', 0.25)
        >>> rate.set(0.0)
        >>> rate.module
        Dropout(p=0.0, inplace=False)
    """

    name: str
    module: nn.Module
    attribute: str

    @property
    def value(self) -> float:
        """What it is now."""
        return float(getattr(self.module, self.attribute))

    def set(self, value: float) -> None:
        """Change it."""
        setattr(self.module, self.attribute, value)


def dropout_rates(module: nn.Module, attributes: Sequence[str] = ATTRIBUTES) -> Iterator[DropoutRate]:
    """All dropout rates in a module.

    A rate is an attribute with one of the names in `attributes` that is a number from 0 to 1, of any module: so do
    torch's attention and recurrent layers, timm's DropPath and many people's attention have theirs. Only `p` has other
    meanings, too, and is one of torch's dropouts or of a class with "drop" or "stochasticdepth" in its name alone.

    Args:
        module: Any module; one that is there twice is named once.
        attributes: Names of the attributes.

    Example:
        >>> block = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, dropout=0.1), "drop": nn.AlphaDropout(0.2)})
        >>> [(rate.name, rate.value) for rate in dropout_rates(block)]
        [('attn.dropout', 0.1), ('drop.p', 0.2)]
    """
    for path, child in module.named_modules():
        for attribute in attributes:
            if attribute in vars(child) and _is_rate(child, attribute, vars(child)[attribute]):
                name = f"{path}.{attribute}" if path else attribute
                yield DropoutRate(name.replace("_orig_mod.", ""), child, attribute)


def _is_rate(module: nn.Module, attribute: str, value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        return False
    named = re.search(r"drop|stochasticdepth", type(module).__name__, re.IGNORECASE)
    return attribute != "p" or isinstance(module, _DropoutNd) or named is not None
