# SPDX-License-Identifier: Apache-2.0
"""Smaller images that hold exactly the low frequencies of large ones."""

import torch
from torch import Tensor


def low_frequency_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Return images of another size with the low frequencies of the old ones, and nothing else of them.

        y = inverse DFT of the middle `height` x `width` of the DFT of x, its zero frequency in the middle

    normalised so that brightness stays. What has no frequency of `height / 2` or `width / 2` and above is the same
    picture with fewer pixels, exactly; interpolation blurs it or aliases.

    Paper: Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones" (ICCV
    2023).

    Deviations: none. Half precision is computed in float32.

    Args:
        images: [..., H, W], real.
        height: At most H, in pixels.
        width: At most W, in pixels.

    Raises:
        ValueError: If a size is not between 1 and that of the images.
        TypeError: If the images are no floating-point numbers.

    Example:
        >>> low_frequency_crop(torch.ones(1, 4, 4), 2, 2)
        tensor([[[1., 1.],
                 [1., 1.]]])
    """
    if not images.is_floating_point():
        raise TypeError(f"`low_frequency_crop(images=...)` must be floating-point numbers, got {images.dtype}.")
    for name, size, full in (("height", height, images.shape[-2]), ("width", width, images.shape[-1])):
        if not 1 <= size <= full:
            raise ValueError(
                f"`low_frequency_crop({name}=...)` must be from 1 to {full}, that of the images, got {size}."
            )
    if images.numel() == 0:
        return images.new_zeros((*images.shape[:-2], height, width))
    exact = images if images.dtype in (torch.float32, torch.float64) else images.float()
    spectrum = torch.fft.fftshift(torch.fft.fft2(exact, norm="forward"), dim=(-2, -1))
    top, left = images.shape[-2] // 2 - height // 2, images.shape[-1] // 2 - width // 2
    middle = spectrum[..., top : top + height, left : left + width]
    return torch.fft.ifft2(torch.fft.ifftshift(middle, dim=(-2, -1)), norm="forward").real.to(images.dtype)
