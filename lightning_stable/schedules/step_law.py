# SPDX-License-Identifier: Apache-2.0
"""Learning rate and batch size for pre-training a language model, from its size and its data alone."""

import warnings
from typing import NamedTuple

from lightning_stable.schedules.arguments import require_positive

_FITTED_PARAMS = (59e6, 1.1e9)
_FITTED_TOKENS = (2e9, 1e11)


class StepLaw(NamedTuple):
    """A learning rate and a batch size for pre-training.

    Args:
        lr: Highest learning rate of AdamW.
        batch_size_tokens: Tokens per optimizer step, over all ranks and micro-batches.

    Example:
        >>> StepLaw(lr=1e-3, batch_size_tokens=524288.0)._asdict()
        {'lr': 0.001, 'batch_size_tokens': 524288.0}
    """

    lr: float
    batch_size_tokens: float


def step_law(params: float, tokens: float) -> StepLaw:
    """Return the learning rate and the batch size that suit a language model's pre-training.

        lr = 1.79 * N^-0.713 * D^0.307,    batch size in tokens = 0.58 * D^0.571

    with N parameters that are no embeddings and D training tokens. The loss is flat around the optimum: rounding the
    batch to a power of two is no loss.

    Paper: Li et al., "Predictable Scale: Part I, Step Law - Optimal Hyperparameter Scaling Law in Large Language Model
    Pretraining" (2025).

    Deviations: none. The law was fitted for AdamW, sequences of 2048 tokens, and a schedule that ends at a learning
    rate of 1e-5, whatever its peak is; ending at a share of the peak shifts the optimum.

    Args:
        params: N, embeddings and head not counted; of a mixture of experts all that there are.
        tokens: D, over the whole run, repeated ones counted again.

    Returns:
        `lr` and `batch_size_tokens`, also by these names. Outside of what the law was fitted on, 59 million to 1.1
        billion parameters and 2 to 100 billion tokens, a `UserWarning` says so.

    Raises:
        ValueError: If an argument is not above 0 and finite.

    Example:
        >>> law = step_law(params=1e9, tokens=100e9)
        >>> round(law.lr, 5), round(law.batch_size_tokens)
        (0.00163, 1107715)
    """
    require_positive("step_law", "params", params)
    require_positive("step_law", "tokens", tokens)
    outside = [
        f"{name} from {low:.3g} to {high:.3g}, and you have {value:.3g}"
        for name, value, (low, high) in (("params", params, _FITTED_PARAMS), ("tokens", tokens, _FITTED_TOKENS))
        if not low <= value <= high
    ]
    if outside:
        warnings.warn(
            f"`step_law` was fitted on {'; on '.join(outside)}. Beyond that it is a guess: try a few learning rates "
            "around it.",
            UserWarning,
            stacklevel=2,
        )
    return StepLaw(1.79 * params**-0.713 * tokens**0.307, 0.58 * tokens**0.571)
