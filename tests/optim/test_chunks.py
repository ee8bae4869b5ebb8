# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.optim import chunks
from lightning_stable.optim.chunks import Scratch, compute_dtype, flat_chunks, is_small

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
