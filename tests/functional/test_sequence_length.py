# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.functional.sequence_length import batch_sequence_length, reshape_sequences, truncate_sequences


def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randint(9, (2, 12), generator=generator),
        "pair": (torch.randn(2, 12, 5, generator=generator), torch.tensor([0.5, 2.0])),
        "names": ["a", "b"],
        "scale": torch.tensor(3.0),
    }


MASKS = {
    "square": ((2, 12, 12), (2, 5, 5)),
    "square with heads": ((2, 3, 12, 12), (2, 3, 5, 5)),
    "one row": ((2, 1, 1, 12), (2, 1, 1, 5)),
    "hidden states by head": ((2, 3, 12, 4), (2, 3, 5, 4)),
    "positions by channel": ((2, 12, 4), (2, 5, 4)),
    "no sequence": ((2, 7, 4), (2, 7, 4)),
}


def test_sequences_are_as_long_as_the_longest_tensor_of_two_axes():
    assert batch_sequence_length(batch()) == 12
    assert batch_sequence_length((torch.zeros(2, 3), torch.zeros(2, 9))) == 9
    assert batch_sequence_length({"x": torch.zeros(2, 3, 7)}, ["x"]) == 3


@pytest.mark.parametrize("length", [1, 5, 11])
def test_what_is_left_are_the_first_positions(length):
    old = batch()
    new = truncate_sequences(old, length)
    assert torch.equal(new["tokens"], old["tokens"][:, :length])
    assert torch.equal(new["pair"][0], old["pair"][0][:, :length])
    assert torch.equal(new["pair"][1], old["pair"][1])
    assert new["tokens"].is_contiguous()
    assert old["tokens"].shape == (2, 12)
    assert new["names"] is old["names"] or new["names"] == old["names"]


@pytest.mark.parametrize("length", [12, 13, 100])
def test_a_batch_that_is_short_enough_is_returned_as_it_is(length):
    old = batch()
    assert truncate_sequences(old, length) is old


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_cut_on_the_axes_that_are_positions(case):
    before, after = MASKS[case]
    mask = torch.ones(before)
    assert truncate_sequences({"tokens": torch.zeros(2, 12), "mask": mask.bool()}, 5)["mask"].shape == after
    if before != after:
        assert truncate_sequences([torch.zeros(2, 12), mask], 5, ["0", "1"])[1].shape == after
    if before[1] == 1 or len(before) == 3:
        assert truncate_sequences([torch.zeros(2, 12), mask], 5)[1].shape == after


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (2, 3, 4, 12, 12), (2, 4, 12, 7)])
def test_images_stay_whole_also_where_they_are_as_large_as_a_sequence_is_long(shape):
    old = {"tokens": torch.zeros(2, 12), "image": torch.rand(shape)}
    assert torch.equal(truncate_sequences(old, 5)["image"], old["image"])
    assert torch.equal(reshape_sequences(old, 6)["image"], old["image"].repeat_interleave(2, 0))


def test_only_what_is_named_is_cut():
    new = truncate_sequences(batch(), 5, ["tokens"])
    assert new["tokens"].shape == (2, 5)
    assert new["pair"][0].shape == (2, 12, 5)
    assert truncate_sequences([torch.zeros(2, 8), torch.zeros(2, 8)], 5, ["1"])[0].shape == (2, 8)


@pytest.mark.parametrize("length", [1, 3, 4, 6])
def test_reshaping_keeps_every_token_in_its_order_and_repeats_what_belongs_to_the_sample(length):
    old = batch()
    new = reshape_sequences(old, length)
    assert torch.equal(new["tokens"].reshape(-1), old["tokens"].reshape(-1))
    assert torch.equal(new["pair"][0].reshape(-1, 5), old["pair"][0].reshape(-1, 5))
    assert torch.equal(new["pair"][1], torch.tensor([0.5] * (12 // length) + [2.0] * (12 // length)))
    assert new["scale"] == 3.0
    for sample in range(2):
        for piece in range(12 // length):
            expected = old["tokens"][sample, piece * length : (piece + 1) * length]
            assert torch.equal(new["tokens"][sample * (12 // length) + piece], expected)


def test_reshaping_names_what_is_sequence_and_repeats_the_rest():
    new = reshape_sequences({"x": torch.arange(6).view(2, 3), "y": torch.arange(6).view(2, 3)}, 1, ["x"])
    assert new["x"].shape == (6, 1)
    assert torch.equal(new["y"], torch.arange(6).view(2, 3).repeat_interleave(3, 0))
    whole = {"x": torch.zeros(2, 3)}
    assert reshape_sequences(whole, 3) is whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int32, torch.float64])
def test_dtypes_stay_and_so_do_gradients_empty_and_non_contiguous_tensors(dtype):
    tensor = torch.ones(12, 4).to(dtype).T
    assert truncate_sequences([tensor], 5)[0].dtype == dtype
    assert reshape_sequences([tensor], 6)[0].shape == (8, 6)
    assert truncate_sequences([torch.zeros(0, 12, dtype=dtype)], 5)[0].shape == (0, 5)
    assert reshape_sequences([torch.zeros(0, 12, dtype=dtype)], 6)[0].shape == (0, 6)


ONE, TWO, LONG = torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(2, 12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_sequence_length({"x": torch.zeros(3)}), r"no sequences of two axes \[B, L\].*`keys`"),
        (lambda: batch_sequence_length({"x": torch.zeros(3)}, ["x"]), r"no sequences \[B, L, ...\] at 'x'"),
        (lambda: batch_sequence_length({"x": torch.zeros(3)}, ["y"]), r"`keys` must name a place .*, got 'y'"),
        (lambda: batch_sequence_length([ONE, TWO], ["0", "1"]), r"of one length, got \[2, 3\]"),
        (lambda: batch_sequence_length([LONG, torch.zeros(2, 3, 7, 7)], ["0", "1"]), r"of one length, got \[3, 12\]"),
        (lambda: reshape_sequences([LONG], 5), r"`reshape_sequences\(length=...\)` must be a divisor .* 12, got 5"),
        (lambda: reshape_sequences([torch.zeros(2, 12)], 0), r"must be a divisor of the sequences' 12, got 0"),
        (
            lambda: reshape_sequences([torch.zeros(2, 12), torch.zeros(2, 12, 12)], 6),
            r"A mask of shape \(2, 12, 12\) cannot be cut into pieces",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
