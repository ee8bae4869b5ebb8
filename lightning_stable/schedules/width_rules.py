# SPDX-License-Identifier: Apache-2.0
"""Carry Adam's learning rate over from a narrow network to a wide one, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_stable.parameters import Patterns, Role, parameter_roles
from lightning_stable.schedules.arguments import require_one_of, require_positive, require_within

Parametrization = Literal["standard", "ntk", "mup", "mean-field"]
Alignment = Literal["full", "none"]

# n^-a is the factor in front of the weights of embedding, hidden layers and readout, see the paper's table 1.
_MULTIPLIERS: dict[str, tuple[float, float, float]] = {
    "standard": (0.0, 0.0, 0.0),
    "ntk": (0.0, 0.5, 0.5),
    "mup": (-0.5, 0.0, 0.5),
    "mean-field": (0.0, 0.5, 1.0),
}
_ALIGNED = {"full": 1.0, "none": 0.5}  # a sum over n aligned terms grows as n, over independent ones as sqrt(n)
_WEIGHTS: tuple[Role, ...] = ("matrix", "scale-invariant", "embedding", "head")

Shape = Sequence[int]


class WidthLRs(NamedTuple):
    """Learning rates by what a layer does with the width.

    Args:
        embedding: From the input to the width: embeddings, the first layer.
        hidden: From the width to the width.
        readout: From the width to the logits: the head.

    Example:
        >>> WidthLRs(1e-2, 1e-3, 1e-3).embedding
        0.01
    """

    embedding: float
    hidden: float
    readout: float


def width_lrs(
    lr: float,
    width: float,
    base_width: float,
    parametrization: Parametrization = "standard",
    alignment: Alignment = "full",
) -> WidthLRs:
    """Return Adam's learning rates for a wide network, from the one that suits a narrow one.

        lr_l = lr * (width / base_width)^-c_l,      c_embedding = -a_embedding,      c_l = s - a_l otherwise

    where n^-a_l stands in front of the weights of layer l, and s = 1 for full alignment of weights and activations,
    s = 1/2 for none. That is, with n = width / base_width,

                        full alignment                       no alignment
                        embedding   hidden      readout      embedding   hidden      readout
        standard        1           1/n         1/n          1           1/sqrt(n)   1/sqrt(n)
        ntk             1           1/sqrt(n)   1/sqrt(n)    1           1           1
        mup             1/sqrt(n)   1/n         1/sqrt(n)    1/sqrt(n)   1/sqrt(n)   1
        mean-field      1           1/sqrt(n)   1            1           1           sqrt(n)

    so that the step of a layer's weights moves its output by as much, however wide the network is.

    Paper: Everett et al., "Scaling Exponents Across Parameterizations and Optimizers" (ICML 2024), table 1.

    Deviations: none. All parametrizations but the standard one also need their factors n^-a_l and their initialisation
    in the network. The paper tunes one more factor per kind of layer, at the base width. Adam's eps has to shrink with
    the gradients of a wide network, or take `AdamAtan2`, which has none.

    Args:
        lr: Learning rate that suits the network at `base_width`.
        width: Channels of the network to be trained.
        base_width: Channels of the one that `lr` was tuned on.
        parametrization: `"standard"` is what PyTorch and GPT-2 do: no factors, variances of 1 / fan_in.
        alignment: `"full"` is the cautious assumption; with `"none"` wide layers learn faster. Try
            both at twice the base width.

    Returns:
        `embedding`, `hidden` and `readout`, also by these names.

    Raises:
        ValueError: If a number is out of its bounds, or a name unknown.

    Example:
        >>> width_lrs(1e-2, width=1024, base_width=256)
        WidthLRs(embedding=0.01, hidden=0.0025, readout=0.0025)
        >>> width_lrs(1e-2, width=1024, base_width=256, alignment="none").hidden
        0.005
    """
    call = "width_lrs"
    require_within(call, "lr", lr, "[0, inf)")
    require_positive(call, "width", width)
    require_positive(call, "base_width", base_width)
    exponents = _exponents(call, parametrization, alignment)
    ratio = width / base_width
    return WidthLRs(*(lr * ratio**-exponent for exponent in exponents))


def width_param_groups(
    module: nn.Module,
    base: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    parametrization: Parametrization = "standard",
    alignment: Alignment = "full",
    *,
    no_decay: Sequence[Role] = ("norm", "bias", "vector"),
    head: Patterns | None = None,
) -> list[dict[str, Any]]:
    """Group a wide module's parameters for Adam, each with the learning rate that its layer's width asks for.

        lr_l = lr * (fan_in_l / base_fan_in_l)^-c_l,    c_l as in `width_lrs`

    The same module at its base width says how much wider each layer has become. A weight whose input is as wide as
    before (embeddings, a first layer, a patch projection) counts as embedding, one with the role "head" as readout,
    other weights as hidden; what has one axis (norms, biases) keeps `lr`.

    Paper: Everett et al., "Scaling Exponents Across Parameterizations and Optimizers" (ICML 2024).

    Deviations: a head that is tied to the embedding can have one learning rate only, that of the embedding. A fan-in is
    the second axis of a weight, of transposed convolutions the first.

    Args:
        module: Its parameters that are trained are grouped, each once; frozen ones are left out.
        base: The same at the width that `lr` was tuned on, also on the device "meta". It is only looked at.
        lr: Learning rate that suits `base`.
        weight_decay: Decay of all that `no_decay` does not name. Decoupled decay of most optimizers is multiplied by
            the learning rate: divide, if wide layers are to decay as narrow ones.
        parametrization: As in `width_lrs`.
        alignment: As in `width_lrs`.
        no_decay: Roles that do not decay, as in `param_groups`.
        head: As in `parameter_roles`.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and a `name`, the parameters in the order of `module.parameters()`.

    Raises:
        ValueError: If a number is out of its bounds, a name unknown, no parameter is trained, or `base` has other
            parameters than `module`.

    Example:
        >>> def network(width):
        ...     return nn.Sequential(nn.Embedding(9, width), nn.Linear(width, width), nn.Linear(width, 9))
        >>> for group in width_param_groups(network(64), base=network(16), lr=1e-2):
        ...     print(group["name"], group["lr"], [tuple(p.shape) for p in group["params"]])
        embedding_4.decay 0.01 [(9, 64)]
        hidden_4.decay 0.0025 [(64, 64)]
        vector.no_decay 0.01 [(64,), (9,)]
        readout_4.decay 0.0025 [(9, 64)]
    """
    call = "width_param_groups"
    require_within(call, "lr", lr, "[0, inf)")
    require_within(call, "weight_decay", weight_decay, "[0, inf)")
    exponents = WidthLRs(*_exponents(call, parametrization, alignment))
    roles = parameter_roles(module, head=head)
    narrow = {name: parameter.shape for name, parameter in base.named_parameters()}
    _require_the_same(call, {name: parameter.shape for name, parameter in module.named_parameters()}, narrow)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, ratio = _kind_and_ratio(roles[name], parameter.shape, narrow[name], _input_axis(module, name))
        decay = 0.0 if roles[name] in no_decay else weight_decay
        label = f"{kind}{'' if ratio == 1.0 else f'_{ratio:g}'}.{'no_decay' if roles[name] in no_decay else 'decay'}"
        rate = lr * ratio ** -getattr(exponents, kind, 0.0)
        group = groups.setdefault(label, {"params": [], "lr": rate, "weight_decay": decay, "name": label})
        group["params"].append(parameter)
    if not groups:
        kind = type(module).__name__
        raise ValueError(f"`{call}(module=...)` must have parameters that require a gradient, got {kind}.")
    return list(groups.values())


def _exponents(call: str, parametrization: str, alignment: str) -> tuple[float, float, float]:
    require_one_of(call, "parametrization", parametrization, get_args(Parametrization))
    require_one_of(call, "alignment", alignment, get_args(Alignment))
    embedding, hidden, readout = _MULTIPLIERS[parametrization]
    s = _ALIGNED[alignment]
    return -embedding, s - hidden, s - readout


def _kind_and_ratio(role: Role, wide: Shape, narrow: Shape, input_axis: int) -> tuple[str, float]:
    """What a layer does with the width, and how much wider it has become."""
    ratios = [ours / theirs for ours, theirs in zip(wide, narrow, strict=True)]
    if role not in _WEIGHTS:
        return "vector", 1.0
    if role == "embedding":
        return "embedding", ratios[-1]
    fan_in, fan_out = ratios[input_axis], ratios[1 - input_axis]
    if role == "head":
        return "readout", fan_in
    return ("embedding", fan_out) if fan_in == 1.0 else ("hidden", fan_in)


def _input_axis(module: nn.Module, name: str) -> int:
    return 0 if isinstance(module.get_submodule(name.rpartition(".")[0]), _ConvTransposeNd) else 1


def _require_the_same(call: str, wide: Mapping[str, Shape], narrow: Mapping[str, Shape]) -> None:
    others = [name for name in wide if len(narrow.get(name, ())) != len(wide[name]) or name not in narrow]
    if others or wide.keys() != narrow.keys():
        where = next(iter([*others, *(narrow.keys() - wide.keys())]))
        raise ValueError(
            f"`{call}(base=...)` must be the same network as `module` at another width, got one that differs in "
            f"{where!r}."
        )
