# SPDX-License-Identifier: Apache-2.0
"""How much gradients differ from sample to sample, and the batch that is large enough for it."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BatchTest = Literal["norm", "inner_product", "orthogonality"]


class GradientNoise(NamedTuple):
    """What tells how large a batch should be; of the gradient g of one sample, with mean mu and covariance Sigma.

    Args:
        variance: tr(Sigma), the variance of a sample's gradient, summed over all entries.
        along: u' Sigma u, the variance along the direction u of the mean gradient.
        mean_square: ||mu||^2. An unbiased estimate of it may be negative.

    Example:
        >>> GradientNoise(variance=50.0, along=2.0, mean_square=0.5).scale
        100.0
    """

    variance: float
    along: float
    mean_square: float

    @property
    def scale(self) -> float:
        """The batch at which noise and signal are equally strong, tr(Sigma) / ||mu||^2; infinite without a signal."""
        return _ratio(self.variance, self.mean_square)


def gradient_noise(gradients: Tensor, samples: int) -> GradientNoise:
    """Estimate the noise from the mean gradients of m micro-batches; no gradient of a sample is needed.

        gbar   = (1/m) sum_j g_j,    u = gbar / ||gbar||,    b samples a micro-batch
        tr(Sigma)   ~  b / (m - 1) * sum_j ||g_j - gbar||^2
        u' Sigma u  ~  b / (m - 1) * sum_j (u' (g_j - gbar))^2
        ||mu||^2    ~  ||gbar||^2 - tr(Sigma) / (m b)

    The first and the last are unbiased. ||gbar||^2 alone is not: its mean is ||mu||^2 + tr(Sigma) / (m b), which, as
    long as the batch is small, is nearly all noise, and would hide that the batch is too small.

    Where micro-batches differ in size, b is the harmonic mean of their b_j, since the mean of ||g_j - mu||^2 is
    tr(Sigma) / b_j.

    Paper: Byrd et al., "Sample Size Selection in Optimization Methods for Machine Learning" (2012); micro-batches in
    the place of samples, as in Lau et al., "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods"
    (2024); the unbiased pair is that of McCandlish et al., "An Empirical Model of Large-Batch Training" (2018).

    Deviations: none.

    Args:
        gradients: [m, entries], m at least 2; one rank's or several ranks' together.
        samples: b.

    Raises:
        ValueError: If there are fewer than two micro-batches, or `samples` is below 1.

    Example:
        >>> noise = gradient_noise(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), samples=4)
        >>> noise.variance, noise.along, noise.mean_square
        (8.0, 8.0, 3.0)
    """
    if gradients.ndim != 2 or len(gradients) < 2:
        raise ValueError(
            "`gradient_noise(gradients=...)` must have at least 2 rows, one for each micro-batch, got the shape "
            f"{tuple(gradients.shape)}."
        )
    if samples < 1:
        raise ValueError(f"`gradient_noise(samples=...)` must be at least 1, got {samples}.")
    gradients = gradients.detach().to(torch.float64)
    mean = gradients.mean(0)
    mean_square = float(mean.square().sum())
    along = (gradients @ mean).square().sum() / mean_square if mean_square else torch.tensor(0.0)
    count = len(gradients)
    return noise_from_sums(samples, count, float(gradients.square().sum()), mean_square, count, float(along))


def noise_from_sums(
    samples: float, count: int, squares: float, mean_square: float, parts: int = 0, along: float = 0.0
) -> GradientNoise:
    """Estimate the noise as `gradient_noise` does, from sums that need no two gradients at a time.

        sum_j ||g_j - gbar||^2          = sum_j ||g_j||^2 - m ||gbar||^2
        sum_k n_k (u' (G_k - gbar))^2   = sum_k n_k (u' G_k)^2 - m ||gbar||^2

    G_k is the mean of n_k micro-batches. Their weighted variance over the parts has the same mean as that of single
    micro-batches, so the m of them can be gathered in fewer parts.

    Paper: as `gradient_noise`.

    Deviations: none.

    Args:
        samples: b, the samples of a micro-batch; their harmonic mean where they differ.
        count: m, the micro-batches.
        squares: sum_j ||g_j||^2.
        mean_square: ||gbar||^2.
        parts: How many parts; 0 to leave `along` at 0.
        along: sum_k n_k (u' G_k)^2.

    Raises:
        ValueError: If there are fewer than two micro-batches.

    Example:
        >>> noise_from_sums(samples=4, count=2, squares=10.0, mean_square=4.0)
        GradientNoise(variance=8.0, along=0.0, mean_square=3.0)
    """
    if count < 2:
        raise ValueError(f"`noise_from_sums(count=...)` must be at least 2 micro-batches, got {count}.")
    spread = _not_below_zero((squares - count * mean_square) / (count - 1))  # below by rounding only
    along_spread = _not_below_zero((along - count * mean_square) / (parts - 1)) if parts > 1 else 0.0
    return GradientNoise(samples * spread, samples * along_spread, mean_square - spread / count)


def required_batch(
    noise: GradientNoise, test: BatchTest = "norm", eta: float = 0.1, theta: float = 0.1, nu: float = 0.1
) -> float:
    """Return the samples per step from which on a test finds the mean gradient of a batch good enough.

        norm:            tr(Sigma) / (eta^2 ||mu||^2)                    the error is eta times the gradient, or less
        inner_product:   u' Sigma u / (theta^2 ||mu||^2)                 its part along the gradient is
        orthogonality:   (tr(Sigma) - u' Sigma u) / (nu^2 ||mu||^2)      its part across is; and `inner_product`

    Paper: Byrd et al., "Sample Size Selection in Optimization Methods for Machine Learning" (2012), norm; Bollapragada,
    Byrd and Nocedal, "Adaptive Sampling Strategies for Stochastic Optimization" (2018), the other two. Together they
    are its augmented test, which is what `orthogonality` asks for. Defaults: Lau et al., "AdAdaGrad" (2024).

    Deviations: the papers have ||gbar||^2, which the noise of the batch itself makes larger, in the place of ||mu||^2.

    Args:
        noise: Of a sample's gradient.
        test: Which of the three.
        eta: Of `norm`, in (0, 1) as a rule.
        theta: Of `inner_product`.
        nu: Of `orthogonality`.

    Returns:
        Samples, not rounded; infinite if the mean gradient is not to be told from zero.

    Raises:
        ValueError: If `test` is unknown, or a tolerance is not above 0.

    Example:
        >>> round(required_batch(GradientNoise(variance=50.0, along=2.0, mean_square=0.5), eta=0.5))
        400
    """
    for name, value in {"eta": eta, "theta": theta, "nu": nu}.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"`required_batch({name}=...)` must be above 0 and finite, got {value}.")
    if test == "norm":
        return _ratio(noise.variance, noise.mean_square) / eta**2
    along = _ratio(noise.along, noise.mean_square) / theta**2
    if test == "inner_product":
        return along
    if test == "orthogonality":
        return max(along, _ratio(noise.variance - noise.along, noise.mean_square) / nu**2)
    raise ValueError(f'`required_batch(test=...)` must be "norm", "inner_product" or "orthogonality", got {test!r}.')


def _ratio(variance: float, mean_square: float) -> float:
    """Infinite without a signal, 0 without noise, NaN if either is."""
    if mean_square > 0.0:
        return max(variance, 0.0) / mean_square
    return math.nan if math.isnan(variance + mean_square) else 0.0 if variance <= 0.0 else math.inf


def _not_below_zero(value: float) -> float:
    return 0.0 if value < 0.0 else value  # NaN stays
