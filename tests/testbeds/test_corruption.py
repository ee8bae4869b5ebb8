# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_stable.testbeds import Corruption
from lightning_stable.testbeds.seeding import seeded_generator

KINDS = ["random_bytes", "constant", "shuffled_labels", "nan_embedding", "huge_scale"]


def text_batch():
    window = torch.randint(256, (4, 9), generator=seeded_generator("text"))
    return {"tokens": window[:, :-1], "targets": window[:, 1:], "embedding_scale": torch.ones(4)}


def image_batch():
    return {"pixels": torch.rand(4, 1, 8, 8, generator=seeded_generator("image")), "targets": torch.arange(4)}


def corrupted(kind, batch, **kwargs):
    return Corruption(kind, fraction=1.0, **kwargs).apply(batch, batch_index=3)


def test_random_bytes_make_a_window_of_noise():
    noise = corrupted("random_bytes", text_batch())
    assert torch.equal(noise["tokens"][:, 1:], noise["targets"][:, :-1])
    assert noise["tokens"].dtype == torch.int64
    assert not torch.equal(noise["tokens"], text_batch()["tokens"])


def test_random_bytes_are_uniform_over_all_bytes():
    batch = {"tokens": torch.zeros(64, 1024).long(), "targets": torch.zeros(64, 1024).long()}
    counts = corrupted("random_bytes", batch)["tokens"].flatten().bincount(minlength=256)
    assert len(counts) == 256
    assert counts.min() > 150
    assert counts.max() < 370


def test_random_bytes_of_an_image_are_pixels_between_zero_and_one():
    noise = corrupted("random_bytes", image_batch())
    assert noise["pixels"].dtype == torch.float32
    assert noise["pixels"].min() >= 0
    assert noise["pixels"].max() <= 1
    assert torch.equal(noise["targets"], torch.arange(4))


def test_constant_blanks_the_inputs():
    text, image = corrupted("constant", text_batch()), corrupted("constant", image_batch())
    assert not text["tokens"].any()
    assert not text["targets"].any()
    assert not image["pixels"].any()


@pytest.mark.parametrize("batch", [text_batch(), image_batch()], ids=["text", "image"])
def test_shuffled_labels_are_a_permutation_and_inputs_stay(batch):
    shuffled = corrupted("shuffled_labels", batch)
    assert torch.equal(shuffled["targets"].flatten().sort().values, batch["targets"].flatten().sort().values)
    assert shuffled["targets"].shape == batch["targets"].shape
    assert not torch.equal(shuffled["targets"], batch["targets"])
    key = "pixels" if "pixels" in batch else "tokens"
    assert torch.equal(shuffled[key], batch[key])


@pytest.mark.parametrize(("kind", "factor"), [("nan_embedding", float("nan")), ("huge_scale", 1e4)])
def test_embeddings_and_pixels_are_scaled(kind, factor):
    text, image = corrupted(kind, text_batch()), corrupted(kind, image_batch())
    assert torch.equal(text["tokens"], text_batch()["tokens"])
    torch.testing.assert_close(text["embedding_scale"], torch.full((4,), factor), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(image["pixels"], image_batch()["pixels"] * factor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [text_batch(), image_batch()], ids=["text", "image"])
def test_the_batch_that_is_given_stays_as_it_was(kind, batch):
    before = copy.deepcopy(batch)
    after = corrupted(kind, batch)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(batch[key], value)
        assert after[key].shape == value.shape
        assert after[key].dtype == value.dtype


def test_noise_depends_on_seed_and_batch_index_alone():
    def noise(seed, index):
        return Corruption("random_bytes", fraction=1.0, seed=seed).apply(text_batch(), index)["tokens"]

    torch.manual_seed(1)
    first = noise(0, 3)
    torch.manual_seed(2)
    assert torch.equal(first, noise(0, 3))
    assert not torch.equal(first, noise(0, 4))
    assert not torch.equal(first, noise(1, 3))


def test_named_batches_are_hit_and_no_others():
    corruption = Corruption("constant", batches=[5, 9])
    assert [i for i in range(100) if corruption.hits(i)] == [5, 9]
    assert not any(Corruption("constant", batches=[]).hits(i) for i in range(10))


def test_a_fraction_hits_about_that_many_batches():
    hits = sum(Corruption("constant", fraction=0.05).hits(i) for i in range(4000))
    assert 150 < hits < 250  # 200 +- 3.6 standard deviations
    assert all(Corruption("constant", fraction=1.0).hits(i) for i in range(100))


def test_the_kind_does_not_decide_what_is_hit_and_the_seed_does():
    def hits(kind, seed):
        return [i for i in range(200) if Corruption(kind, fraction=0.1, seed=seed).hits(i)]

    assert hits("constant", 0) == hits("huge_scale", 0)
    assert hits("constant", 0) != hits("constant", 1)


def test_a_dictionary_from_yaml_becomes_a_corruption():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--corrupt", type=list[Corruption])
    config = parser.parse_object(
        {"corrupt": [{"kind": "constant", "batches": [1]}, {"kind": "huge_scale", "fraction": 0.1}]}
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter until 4.48
    made = instantiate(config).corrupt
    assert made == [Corruption("constant", batches=[1]), Corruption("huge_scale", fraction=0.1)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"kind": "random_byte", "fraction": 0.1},
            r"kind=\.\.\.\)` must be one of 'random_bytes', 'constant', .*, got "
            r"'random_byte'\. Did you mean 'random_bytes'\?",
        ),
        ({"kind": "xyz", "fraction": 0.1}, r"got 'xyz'\.$"),
        (
            {"kind": "constant"},
            r"needs exactly one of `fraction` \(above 0\) and `batches`, got fraction=0\.0, batches=None",
        ),
        (
            {"kind": "constant", "fraction": 0.1, "batches": [1]},
            r"needs exactly one .* got fraction=0\.1, batches=\[1\]",
        ),
        ({"kind": "constant", "fraction": 1.5}, r"`Corruption\(fraction=\.\.\.\)` must be in \(0, 1\], got 1\.5\."),
        ({"kind": "constant", "fraction": -0.5}, r"fraction=\.\.\.\)` must be in \(0, 1\], got -0\.5\."),
        ({"kind": "constant", "batches": [3, -1]}, r"`Corruption\(batches=\.\.\.\)` must be at least 0, got -1\."),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Corruption(**kwargs)
