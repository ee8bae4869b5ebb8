# SPDX-License-Identifier: Apache-2.0
"""What each parameter of a module is for, and the parameter groups that follow from it."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

Role = Literal["matrix", "embedding", "head", "norm", "bias", "vector", "scale-invariant"]

Patterns = str | Sequence[str]

# Where a tied parameter has several roles, it gets the first of these.
_FIRST: tuple[Role, ...] = ("embedding", "norm", "bias", "head", "matrix", "vector", "scale-invariant")
_LAYERS = (nn.Linear, _ConvNd)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # the first: BatchNorm*, SyncBatchNorm, InstanceNorm*
_WHOLE_BLOCKS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_HEAD_NAMES = frozenset({"head", "lm_head", "classifier", "logits"})


class _Use(NamedTuple):
    """One of the names of a parameter; a reparametrised weight counts as that of its layer."""

    name: str
    layer: str
    own: str
    scale_free: bool


_Uses = dict[str, list[_Use]]  # by a parameter's first name, in the order of `module.named_parameters()`


def parameter_roles(module: nn.Module, head: Patterns | None = None, scale_invariant: Patterns = ()) -> dict[str, Role]:
    """Say of each parameter of a module what it is for.

        embedding        weight of nn.Embedding and nn.EmbeddingBag; other parameters called *embed* or *token*
        norm             gain and bias of torch's norms and of classes whose name ends in "Norm"
        bias             called *bias*
        head             weight of the layer whose output is the logits, see below
        scale-invariant  its scale is removed by what follows: a convolution or nn.Linear without bias right before one
                         of torch's norms in an nn.Sequential (a convolution before BatchNorm or InstanceNorm may have
                         a bias, which they remove too), or the direction under weight or spectral norm
        matrix           all other weights of linear, convolution and recurrent layers, and what has two long axes
        vector           the rest: at most one axis longer than 1, such as LayerScale, a temperature, weight norm's g

    The head is, without the argument `head`, the last nn.Linear or convolution in each module called head, lm_head,
    classifier or logits; if there is none of these, the last one registered in the whole module that is trained,
    unless a recurrent layer comes after it or a norm right behind it. Nothing inside of a block that is one of many
    (in an nn.ModuleList, or beside one of the same class in an nn.Sequential) or of nn.MultiheadAttention is a head.

    A tied parameter has one name, the first, and one role: embedding if it is one anywhere, and scale-invariant only
    if it is everywhere. The arguments decide where rules do not fit; a pattern is a regular expression that must match
    the whole name of a parameter, or of a module it lies in: "model.head", or ".*head" wherever it is.

    Args:
        module: Any module, a LightningModule too. Frozen parameters are named as well.
        head: Patterns: their weights, and no other ones, are the head. `None` applies the rule, `()` is no head.
        scale_invariant: Patterns: these parameters are scale-invariant, whatever else they seem to be.

    Returns:
        Roles by name, in the order of `module.named_parameters()`.

    Raises:
        ValueError: If a pattern matches nothing or is not a regular expression.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> for name, role in parameter_roles(model).items():
        ...     print(name, role)
        0.weight scale-invariant
        0.bias bias
        1.weight norm
        1.bias norm
        3.weight head
        3.bias bias
    """
    return _roles("parameter_roles", module, head, scale_invariant)[0]


def param_groups(
    module: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    layer_decay: float | None = None,
    *,
    no_decay: Sequence[Role] = ("norm", "bias", "vector"),
    no_decay_names: Patterns = (),
    head: Patterns | None = None,
    scale_invariant: Patterns = (),
    stack: str | None = None,
) -> list[dict[str, Any]]:
    """Group a module's parameters for an optimizer: who decays, and whose layer learns how fast.

        lr_l = lr * layer_decay^(L - l)

    with l = 0 for embeddings and what is registered before the stack of layers, l = 1 .. n for its layers, and
    l = L = n + 1 for the head and what is registered after the stack. The stack is the nn.ModuleList or nn.Sequential
    with the most layers that is not itself inside of a layer of another. An element of it counts as a layer if it
    holds a weight (matrix or scale-invariant); a norm between two layers belongs to the one before it.

    Paper: Clark et al., "ELECTRA" (ICLR 2020), layer-wise decay; Howard and Ruder, "Universal Language Model
    Fine-tuning for Text Classification" (ACL 2018), where the idea comes from.

    Deviations: a weight tied between embedding and head learns as slowly as an embedding. Models with several stacks
    in a row (encoder and decoder, the stages of a ResNet) have one of them decayed.

    Args:
        module: Its parameters that are trained are grouped, each once; frozen ones are left out.
        weight_decay: Decay of all that `no_decay` does not name.
        lr: Learning rate of each group, to be multiplied for the lower layers. `None` leaves it to the optimizer.
        layer_decay: Factor from a layer to the one below, in (0, 1]. `None` treats all layers alike.
        no_decay: Roles that do not decay. Default: all that have one axis; embeddings and the head do decay.
        no_decay_names: Patterns of further parameters that do not decay, as in `parameter_roles`.
        head: As in `parameter_roles`.
        scale_invariant: As in `parameter_roles`; of use with "scale-invariant" in `no_decay`.
        stack: Name of the stack of layers, for `layer_decay`. `None` looks for it.

    Returns:
        Groups with `params` in the order of `module.parameters()`, `weight_decay`, a `name` (LearningRateMonitor
        shows it) and, if given, `lr`: lower layers first, and in a layer those that decay first. None is empty.

    Raises:
        ValueError: If no parameter is trained, a number is out of its bounds, `layer_decay` comes without `lr` or finds
            no stack, or a role or pattern fits nothing.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 9, bias=False))
        >>> for group in param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=0.5):
        ...     print(group["name"], group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        layer0.decay 0.25 0.1 [(9, 4)]
        layer1.decay 0.5 0.1 [(4, 4)]
        layer1.no_decay 0.5 0.0 [(4,), (4,), (4,)]
        layer2.decay 1.0 0.1 [(9, 4)]
    """
    call = "param_groups"
    _require(0.0 <= weight_decay < math.inf, call, "weight_decay", "at least 0 and finite", weight_decay)
    _require(lr is None or 0.0 <= lr < math.inf, call, "lr", "at least 0 and finite", lr)
    _require(layer_decay is None or 0.0 < layer_decay <= 1.0, call, "layer_decay", "in (0, 1]", layer_decay)
    _require(layer_decay is None or lr is not None, call, "lr", "given with `layer_decay`", lr)
    _require(not isinstance(no_decay, str), call, "no_decay", "a list of roles", repr(no_decay))
    for role in no_decay:
        _require(role in get_args(Role), call, "no_decay", f"roles out of {get_args(Role)}", repr(role))
    roles, uses = _roles(call, module, head, scale_invariant)
    exempt = _matching(call, "no_decay_names", no_decay_names, uses)
    levels, top = (dict.fromkeys(roles, 0), 0) if layer_decay is None else _levels(module, roles, uses, stack)
    members: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spared = roles[name] in no_decay or name in exempt
            members.setdefault((levels[name], spared), []).append(parameter)
    _require(bool(members), call, "module", "one with parameters that require a gradient", type(module).__name__)
    groups = []
    for (level, spared), params in sorted(members.items(), key=itemgetter(0)):
        group: dict[str, Any] = {"params": params, "weight_decay": 0.0 if spared else weight_decay}
        group["name"] = ("" if layer_decay is None else f"layer{level}.") + ("no_decay" if spared else "decay")
        if lr is not None:
            group["lr"] = lr * (layer_decay or 1.0) ** (top - level)
        groups.append(group)
    return groups


def normalized_weight_decay(weight_decay: float, batch_size: int, samples: int, epochs: float) -> float:
    """Return the weight decay for a run of a given length, from one that suits runs of any length.

        lambda = lambda_norm * sqrt(b / (B T))

    The longer the run and the smaller the batch, that is the more steps, the less each step decays.

    Paper: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019).

    Deviations: none, but mind that the paper's lambda is not multiplied by the learning rate. torch's AdamW and most
    others do multiply: divide by the highest learning rate of the schedule to get the paper's decay.

    Args:
        weight_decay: The normalised one, lambda_norm: what would suit a run of one step.
        batch_size: Samples per optimizer step b, over all ranks and micro-batches.
        samples: Samples per epoch B.
        epochs: Epochs of the run T.

    Raises:
        ValueError: If `weight_decay` is negative, a count is below 1 or `epochs` is not above 0.

    Example:
        >>> normalized_weight_decay(0.05, batch_size=100, samples=10_000, epochs=25)
        0.001
    """
    call = "normalized_weight_decay"
    _require(0.0 <= weight_decay < math.inf, call, "weight_decay", "at least 0 and finite", weight_decay)
    _require(batch_size >= 1, call, "batch_size", "at least 1", batch_size)
    _require(samples >= 1, call, "samples", "at least 1", samples)
    _require(epochs > 0, call, "epochs", "greater than 0", epochs)
    return weight_decay * math.sqrt(batch_size / (samples * epochs))


def _require(fits: bool, call: str, argument: str, bound: str, value: object) -> None:
    if not fits:
        raise ValueError(f"`{call}({argument}=...)` must be {bound}, got {value}.")


def _roles(
    call: str, module: nn.Module, head: Patterns | None, scale_invariant: Patterns
) -> tuple[dict[str, Role], _Uses]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    modules = dict(module.named_modules(remove_duplicate=False))
    uses = _uses(parameters, modules)
    chosen = _matching(call, "scale_invariant", scale_invariant, uses)
    if head is None:
        layers = _head_layers(module)
        heads = {name for name, found in uses.items() if any(use.layer in layers for use in found)}
    else:
        heads = _matching(call, "head", head, uses)
    roles: dict[str, Role] = {}
    for name, found in uses.items():
        each = {_role_of(use, modules[use.layer], parameters[name], name in heads) for use in found}
        roles[name] = "scale-invariant" if name in chosen else next(role for role in _FIRST if role in each)
    return roles, uses


def _role_of(use: _Use, owner: nn.Module, parameter: Tensor, is_head: bool) -> Role:
    magnitude = use.own.endswith("_g")  # of weight norm
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if _is_norm(owner):
        return "norm"
    if "bias" in use.own:
        return "bias"
    if is_head and not magnitude:
        return "head"
    if use.scale_free and not magnitude:
        return "scale-invariant"
    if isinstance(owner, (*_LAYERS, *_RECURRENT)) and "weight" in use.own and not magnitude:
        return "matrix"
    if "embed" in use.own or "token" in use.own:
        return "embedding"
    return "matrix" if sum(size > 1 for size in parameter.shape) >= 2 else "vector"


def _is_norm(owner: nn.Module) -> bool:
    """A class of somebody's called *Norm is a norm if it is no wrapper around other layers."""
    named = any(re.search(r"Norm(\dd)?$", kind.__name__) for kind in type(owner).__mro__)
    return isinstance(owner, _NORMS) or (named and not any(list(child.parameters()) for child in owner.children()))


def _uses(parameters: dict[str, nn.Parameter], modules: dict[str, nn.Module]) -> _Uses:
    before_norm = _layers_before_a_norm(modules)
    uses: dict[Tensor, list[_Use]] = {}
    for name, parameter in parameters.items():
        layer, own, direction = _place(name, modules)
        uses.setdefault(parameter, []).append(_Use(name, layer, own, direction or layer in before_norm))
    return {found[0].name: found for found in uses.values()}


def _place(name: str, modules: dict[str, nn.Module]) -> tuple[str, str, bool]:
    """The layer a parameter belongs to, its name there, and whether weight or spectral norm removes its scale."""
    layer, _, own = name.rpartition(".")
    holder = modules[layer]
    if not isinstance(holder, ParametrizationList):
        stem = own.rpartition("_")[0]
        by_hook = {f"{stem}_v": f"{stem}_g", f"{stem}_orig": f"{stem}_u"}.get(own)  # torch.nn.utils.*_norm
        return layer, own, by_hook is not None and hasattr(holder, by_hook)
    *path, _, tensor = layer.split(".")
    kind = type(holder[0]).__name__
    names = {"original": tensor}
    if kind == "_WeightNorm":
        names |= {"original0": f"{tensor}_g", "original1": f"{tensor}_v"}
    return ".".join(path), names.get(own, own), kind == "_SpectralNorm" or names.get(own) == f"{tensor}_v"


def _layers_before_a_norm(modules: dict[str, nn.Module]) -> set[str]:
    found = set()
    for path, container in modules.items():
        if isinstance(container, nn.Sequential):
            members = [(key, child) for key, child in container._modules.items() if not isinstance(child, nn.Identity)]
            for (key, layer), (_, norm) in pairwise(members):
                if isinstance(layer, _LAYERS) and isinstance(norm, _NORMS):
                    cancelled = isinstance(layer, _ConvNd) and isinstance(norm, _NormBase)
                    if layer.bias is None or cancelled:
                        found.add(_join(path, key))
    return found


def _head_layers(module: nn.Module) -> set[str]:
    """The layers that `parameter_roles` takes for the head when nobody says which it is."""
    layers = [(name, one) for name, one in module.named_modules() if isinstance(one, (*_LAYERS, *_RECURRENT))]
    blocks = _blocks(module)
    named: dict[str, str] = {}
    for name, layer in layers:
        if isinstance(layer, _LAYERS) and not _inside(name, blocks):
            called = [prefix for prefix in _prefixes(name) if prefix.rpartition(".")[2] in _HEAD_NAMES]
            named.update(dict.fromkeys(called[:1], name))
    if named:
        return set(named.values())
    trained = [(name, layer) for name, layer in layers if any(one.requires_grad for one in layer.parameters())]
    name, last = trained[-1] if trained else ("", None)
    free = not _inside(name, blocks) and name not in _layers_before_a_norm(dict(module.named_modules()))
    return {name} if isinstance(last, _LAYERS) and free else set()


def _blocks(module: nn.Module) -> set[str]:
    """Names of the modules of which there are many alike, and of those that have no head for sure."""
    blocks = set()
    for path, container in module.named_modules():
        if isinstance(container, _WHOLE_BLOCKS):
            blocks.add(path)
        if isinstance(container, nn.ModuleList | nn.Sequential):
            kinds = Counter(type(child) for child in container if not isinstance(child, nn.Sequential))
            for key, child in container.named_children():
                alike = isinstance(container, nn.ModuleList) or kinds[type(child)] > 1
                if alike and not isinstance(child, _LAYERS):
                    blocks.add(_join(path, key))
    return blocks


def _levels(module: nn.Module, roles: dict[str, Role], uses: _Uses, stack: str | None) -> tuple[dict[str, int], int]:
    """The layer l of each parameter, and L."""
    blocks = _blocks(module)
    heavy = [found for name, found in uses.items() if roles[name] in ("matrix", "scale-invariant")]
    weights = [use.name for found in heavy for use in found]
    stacks = [
        _elements(path, container, weights)
        for path, container in module.named_modules()
        if isinstance(container, nn.ModuleList | nn.Sequential)
        if (not _inside(path, blocks) if stack is None else path == stack)
    ]
    elements = max(stacks, key=lambda one: max(one.values(), default=0), default={})
    top = max(elements.values(), default=0) + 1
    bound = "the name of an nn.ModuleList or nn.Sequential of layers with weights where `layer_decay` finds none"
    _require(top > 1, "param_groups", "stack", bound, repr(stack))
    head_layers = {use.layer for name, found in uses.items() if roles[name] == "head" for use in found}
    levels: dict[str, int] = {}
    outside = 0  # before the stack; L after it
    for name, found in uses.items():
        within = [level for prefix, level in elements.items() if any(use.name.startswith(prefix) for use in found)]
        if within:
            outside = top
        if roles[name] == "embedding":
            levels[name] = 0
        elif any(use.layer in head_layers for use in found):
            levels[name] = top
        else:
            levels[name] = within[0] if within else outside
    return levels, top


def _elements(path: str, container: nn.Module, weights: list[str]) -> dict[str, int]:
    """The layer of each element of a stack, by the beginning of its parameters' names."""
    elements, level = {}, 0
    for key in container._modules:
        prefix = f"{_join(path, key)}."
        level += any(name.startswith(prefix) for name in weights)
        elements[prefix] = level
    return elements


def _matching(call: str, argument: str, patterns: Patterns, uses: _Uses) -> set[str]:
    """The parameters one of whose names, or a module that holds them, fits a pattern."""
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            fits = re.compile(pattern).fullmatch
        except re.error as error:
            why = f"{pattern!r}: {error}"
            raise ValueError(f"`{call}({argument}=...)` must be a regular expression, got {why}.") from None
        found = {name for name in uses if any(fits(part) for use in uses[name] for part in _prefixes(use.name))}
        bound = f"the whole name of a parameter or module, or a pattern for it, such as {next(iter(uses), '')!r}"
        _require(bool(found), call, argument, bound, repr(pattern))
        matched |= found
    return matched


def _prefixes(name: str) -> Iterator[str]:
    """'a', 'a.b' and 'a.b.c' of 'a.b.c'."""
    return accumulate(name.split("."), "{}.{}".format)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _inside(name: str, modules: Collection[str]) -> bool:
    return "" in modules or any(prefix in modules for prefix in _prefixes(name))
