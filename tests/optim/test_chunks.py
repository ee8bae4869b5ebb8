# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import ada_clip
from lightning_stable.optim import chunks
from lightning_stable.optim.chunks import (
    Scratch,
    clipped_square,
    compute_dtype,
    extents,
    flat_chunks,
    is_small,
    largest_of,
)

LAYOUTS = {
    "contiguous": lambda: torch.arange(12.0).reshape(3, 4),
    "transposed": lambda: torch.arange(12.0).reshape(4, 3).t(),
    "strided": lambda: torch.arange(24.0)[::2],
    "channels_last": lambda: torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "expanded by one": lambda: torch.arange(3.0).reshape(3, 1, 1),
    "empty": lambda: torch.zeros(0, 3),
    "no axis": lambda: torch.tensor(2.0),
}


@pytest.mark.parametrize("size", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_done_to_the_chunks_is_done_to_the_tensors(layout, dtype, size, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", size)
    tensor, moment = LAYOUTS[layout]().to(dtype), LAYOUTS[layout]().contiguous().float()
    gradient = LAYOUTS[layout]().to(dtype)
    expected, kept = tensor + 2 * gradient, gradient.clone()
    for (part, moment_part), gradient_part in flat_chunks([tensor, moment], gradient):
        assert part.numel() <= size
        assert part.dtype == gradient_part.dtype == moment_part.dtype == compute_dtype(tensor)
        part.add_(gradient_part, alpha=2)
        moment_part.mul_(3)
    assert torch.equal(tensor, expected)
    assert torch.equal(moment, 3 * LAYOUTS[layout]())
    assert torch.equal(gradient, kept)


def test_without_a_tensor_to_change_only_the_gradient_is_walked_over():
    assert [(parts, part.tolist()) for parts, part in flat_chunks([], torch.ones(2))] == [([], [1.0, 1.0])]


def test_scratch_is_as_large_as_what_it_is_asked_for_and_of_its_precision():
    scratch = Scratch()
    for size, dtype in ((3, torch.float32), (7, torch.float32), (2, torch.float64), (0, torch.float32)):
        room = scratch.like(torch.ones(size, dtype=dtype))
        assert (room.shape, room.dtype) == ((size,), dtype)


@pytest.mark.parametrize(("numel", "small"), [(0, False), (1, True), (4, True), (5, False)])
def test_a_small_tensor_is_not_larger_than_a_chunk_and_not_empty(numel, small, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    assert is_small(torch.zeros(numel)) == small


# How large gradients are


@pytest.fixture(params=[(2**14, 2**19), (0, 2**19), (0, 7)], ids=["small", "large", "in chunks"])
def sizes(request, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", request.param[0])
    monkeypatch.setattr("lightning_stable.optim.chunks.CHUNK", request.param[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_are_the_largest_entry_and_the_sum_of_squares(sizes, dtype):
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in ((5, 4), (3,), ())]
    given.append(given[0].T)  # not contiguous
    for gradient, parts in zip(given, extents(given), strict=True):
        assert largest_of(parts) == gradient.abs().max().item()
        assert sum(part.square for part in parts) == pytest.approx(gradient.double().square().sum().item(), rel=1e-6)


def test_an_empty_gradient_has_none(sizes):
    assert largest_of(extents([torch.zeros(0)])[0]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(sizes, bad):
    gradient = torch.ones(20)
    gradient[13] = bad
    [parts] = extents([gradient])
    assert not math.isfinite(largest_of(parts)) or not math.isfinite(sum(part.square for part in parts))


@pytest.mark.parametrize("threshold", [0.5, 100.0])
def test_the_clipped_square_is_that_of_the_clipped_gradient(sizes, threshold):
    gradient = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    [parts] = extents([gradient])
    largest = largest_of(parts)
    clipped = ada_clip(gradient, threshold, largest) if largest > threshold else gradient
    found = clipped_square(gradient, parts, threshold, largest, Scratch())
    assert found == pytest.approx(clipped.square().sum().item(), rel=1e-12)
