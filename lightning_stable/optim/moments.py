# SPDX-License-Identifier: Apache-2.0
"""Forget what an optimizer remembers of past gradients, in place.

A spike lives on in the moments long after its gradient is gone. Setting them to zero ends that. With Adam's bias
correction 1 - beta^step it matters which, and whether `step` starts over too. First update after it, in units of lr:

    moments and step    1.0                              a full sign step, as at the start of training: re-warm the lr
    first moment only   1 - beta1                        small: the second moment still knows the gradients' size
    moments, step kept  (1 - beta1) / sqrt(1 - beta2)    up to 3.2, too large: bias correction is wrong; not offered
"""

import warnings
from typing import Any, Literal

import torch
from torch.optim import Optimizer

# The names under which torch's optimizers, and those that follow its customs, keep their state.
FIRST_MOMENTS = frozenset({"exp_avg", "exp_avg_diff", "momentum_buffer"})  # the second: Adan
SECOND_MOMENTS = frozenset(
    {
        "exp_avg_sq",  # Adam, AdamW, NAdam, RAdam, SparseAdam
        "max_exp_avg_sq",  # Adam(amsgrad=True)
        "exp_inf",  # Adamax
        "square_avg",  # RMSprop, Adadelta
        "grad_avg",  # RMSprop(centered=True): it only enters the variance
        "acc_delta",  # Adadelta
        "sum",  # Adagrad
        "row_var",  # Adafactor, and the two below
        "col_var",
        "variance",
        "hessian",  # SophiaG; of AdaHessian the estimate of this step
        "exp_hessian_diag_sq",  # AdaHessian
        "mu_product",  # NAdam: the product its bias correction divides by
        "beta1_product",  # StableSPAM: likewise
    }
)

# State that no reset touches: the last gradient of DiffGrad and Adan, what StableSPAM knows of their size, and in what
# units it keeps moments, which are 0 in any unit.
NO_MOMENTS = frozenset({"step", "previous_grad", "statistics", "exp_avg_unit", "exp_avg_sq_unit"})


@torch.no_grad()
def reset_moments(optimizer: Optimizer, moments: Literal["first", "all"] = "first") -> int:
    """Set an optimizer's moments back to where they started, in place, and return how many tensors that were.

        first:  m = 0                      the bias-correction counter goes on, as the second moment does
        all:    m = 0, v = 0, step = 0     bias correction starts over, as it must with v

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025).

    Deviations: SPAM zeroes both moments and lets `step` run on, which makes the first update after a reset up to 3.2
    times as large as lr; here `step` starts over with the second moment. State is written to, never replaced, so
    capturable and compiled steps keep their tensors. A moment that has become NaN is 0 afterwards like any other.

    Args:
        optimizer: Any torch optimizer; state tensors whose name is not known to be a moment are left alone, and named
            in a warning.
        moments: `"first"` for momentum alone (Adam's `exp_avg`, SGD's and Muon's `momentum_buffer`); `"all"` for the
            second moments (`exp_avg_sq` ...) and the counter `step` as well.

    Raises:
        ValueError: If `moments` is neither `"first"` nor `"all"`.

    Example:
        >>> parameter = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.AdamW([parameter])
        >>> parameter.grad = torch.ones(2)
        >>> optimizer.step()
        >>> reset_moments(optimizer)
        1
        >>> optimizer.state[parameter]["exp_avg"].tolist(), optimizer.state[parameter]["step"].item()
        ([0.0, 0.0], 1.0)
        >>> reset_moments(optimizer, moments="all")
        2
        >>> optimizer.state[parameter]["step"].item()
        0.0
    """
    if moments not in ("first", "all"):
        raise ValueError(f'`reset_moments(moments=...)` must be "first" or "all", got {moments!r}.')
    names = FIRST_MOMENTS if moments == "first" else FIRST_MOMENTS | SECOND_MOMENTS
    count = 0
    unknown: set[str] = set()
    for group in optimizer.param_groups:
        count_before = count
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            count += _reset_state(state, names, group)
            unknown |= _unknown_tensors(state)
        if moments == "all" and count > count_before:
            _restart_counter(group)
    if unknown:
        warnings.warn(
            f"`reset_moments` left these state tensors of {type(optimizer).__name__} alone, not knowing whether they "
            f"are moments: {', '.join(sorted(unknown))}.",
            UserWarning,
            stacklevel=2,
        )
    return count


def _reset_state(state: dict[str, Any], names: frozenset[str], group: dict[str, Any]) -> int:
    found = [name for name, value in state.items() if name in names and isinstance(value, torch.Tensor)]
    for name in found:
        state[name].fill_(_initial_value(name, group))
    if found and names >= SECOND_MOMENTS:
        _restart_counter(state)
    return len(found)


def _initial_value(name: str, group: dict[str, Any]) -> float:
    if name in ("mu_product", "beta1_product"):
        return 1.0
    return group.get("initial_accumulator_value", 0.0) if name == "sum" else 0.0


def _restart_counter(holder: dict[str, Any]) -> None:
    """Torch counts in the state of each parameter, some optimizers in the group."""
    step = holder.get("step")
    if isinstance(step, torch.Tensor):
        step.zero_()
    elif step is not None:
        holder["step"] = 0


def _unknown_tensors(state: dict[str, Any]) -> set[str]:
    known = FIRST_MOMENTS | SECOND_MOMENTS | NO_MOMENTS
    return {str(name) for name, value in state.items() if isinstance(value, torch.Tensor) and name not in known}
