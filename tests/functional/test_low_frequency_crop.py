# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import low_frequency_crop


def reference(image, height, width):
    """The two sums, term by term, for one image."""
    rows, columns = image.shape
    spectrum = {}
    for u in range(-(height // 2), height - height // 2):
        for v in range(-(width // 2), width - width // 2):
            terms = [
                image[y, x].item() * complex(math.cos(phase), math.sin(phase))
                for y in range(rows)
                for x in range(columns)
                for phase in [-2 * math.pi * (u * y / rows + v * x / columns)]
            ]
            spectrum[u, v] = sum(terms) / (rows * columns)
    small = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            phases = {(u, v): 2 * math.pi * (u * y / height + v * x / width) for u, v in spectrum}
            small[y, x] = sum(
                value * complex(math.cos(p), math.sin(p))
                for (value, p) in zip(spectrum.values(), phases.values(), strict=True)
            ).real
    return small  # fmt: skip


def band_limited(size, highest, dtype=torch.float64):
    """A sum of waves of up to `highest` periods, sampled at `size` x `size` points."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(size, size, dtype=dtype)
    at = torch.arange(size, dtype=dtype) / size
    for u in range(highest + 1):
        for v in range(-highest, highest + 1):
            strength, shift = torch.rand(2, generator=generator, dtype=dtype)
            image += strength * torch.cos(2 * math.pi * (u * at[:, None] + v * at[None, :] + shift))
    return image


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), (4, 4)), ((7, 6), (3, 4)), ((6, 9), (5, 5)), ((8, 8), (8, 8)), ((5, 5), (1, 1))]
)
def test_it_is_the_middle_of_the_spectrum(shape, size):
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(low_frequency_crop(image, *size), reference(image, *size), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("full", "size", "highest"), [(32, 16, 7), (32, 17, 8), (31, 12, 5), (16, 16, 7), (33, 11, 5)])
def test_an_image_of_low_frequencies_is_the_same_picture_with_fewer_pixels(full, size, highest):
    small = low_frequency_crop(band_limited(full, highest), size, size)
    torch.testing.assert_close(small, band_limited(size, highest), rtol=1e-12, atol=1e-10)


def test_high_frequencies_leave_nothing():
    at = torch.arange(32, dtype=torch.float64) / 32
    stripes = 1 + torch.cos(2 * math.pi * 12 * at)[None, :].expand(32, 32)
    torch.testing.assert_close(low_frequency_crop(stripes, 16, 16), torch.ones(16, 16, dtype=torch.float64))


def test_brightness_batches_and_gradients():
    images = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = low_frequency_crop(images, 7, 5)
    assert small.shape == (2, 3, 7, 5)
    torch.testing.assert_close(small.mean(dim=(-2, -1)), images.mean(dim=(-2, -1)))
    torch.testing.assert_close(small[1, 2], low_frequency_crop(images[1, 2], 7, 5))
    assert torch.autograd.gradcheck(lambda x: low_frequency_crop(x, 3, 4), images[:1, :1, :5, :6].requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_stay_and_strides_do_not_matter(dtype):
    images = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    small = low_frequency_crop(images, 4, 4)
    assert small.dtype == dtype
    torch.testing.assert_close(low_frequency_crop(images.transpose(1, 2), 4, 4), small.transpose(1, 2))
    assert low_frequency_crop(torch.zeros(0, 8, 8, dtype=dtype), 4, 4).shape == (0, 4, 4)


def test_what_cannot_be_is_refused_by_name():
    images = torch.zeros(1, 4, 6)
    for arguments, message in (
        ((5, 6), r"height=...\)` must be from 1 to 4.*got 5"),
        ((4, 0), r"width=...\)` must be from 1 to 6.*got 0"),
    ):
        with pytest.raises(ValueError, match=rf"`low_frequency_crop\({message}"):
            low_frequency_crop(images, *arguments)
    with pytest.raises(
        TypeError, match=r"`low_frequency_crop\(images=...\)` must be floating-point numbers, got torch.uint8"
    ):
        low_frequency_crop(images.to(torch.uint8), 2, 2)
