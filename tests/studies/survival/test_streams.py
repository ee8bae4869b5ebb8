# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.studies.survival.streams import MIXED, Stream, streams
from lightning_stable.testbeds import Corruption


def all_bad(stream, seed):
    return sorted(batch for batches in stream.bad_batches(seed).values() for batch in batches)


@pytest.mark.parametrize("stream", streams(quick=False)[1:], ids=lambda stream: stream.title)
@pytest.mark.parametrize("seed", range(5))
def test_as_many_batches_are_bad_as_the_rate_says(stream, seed):
    bad = all_bad(stream, seed)
    assert len(bad) == len(set(bad)) == round(stream.rate * stream.steps)
    assert 0 <= bad[0] <= bad[-1] < stream.steps


def test_places_are_of_the_seed_and_not_of_the_kind():
    first, second = (Stream(kind, 0.02) for kind in ("random_bytes", "huge_scale"))
    assert all_bad(first, seed=3) == all_bad(second, seed=3) != all_bad(first, seed=4)


def test_bursts_are_in_one_piece_and_of_one_kind():
    for batches in Stream("mixed", 0.04, burst=8).bad_batches(seed=0).values():
        assert len(batches) == 8
        assert batches == list(range(batches[0], batches[0] + 8))
        assert batches[0] % 8 == 0


def test_the_kinds_of_a_mixed_stream_take_turns():
    counts = {kind: len(batches) for kind, batches in Stream("mixed", 0.05).bad_batches(seed=0).items()}
    assert counts == dict.fromkeys(MIXED, 5)


def test_a_small_rate_is_at_least_one_batch():
    assert len(all_bad(Stream("nan_embedding", 0.005, steps=20), seed=0)) == 1


def test_nothing_is_bad_on_the_clean_stream():
    assert Stream().is_clean
    assert Stream().bad_batches(seed=0) == {}
    assert not any(stream.is_clean for stream in streams(quick=False)[1:])


def test_every_kind_is_known_to_the_testbed():
    for stream in streams(quick=False):
        for kind, batches in stream.bad_batches(seed=0).items():
            assert Corruption(kind, batches=batches).hits(batches[0])


@pytest.mark.parametrize("stream", streams(quick=False) + streams(quick=True), ids=lambda stream: stream.title)
def test_a_stream_comes_back_from_the_storage(stream):
    assert Stream.of(dict(stream.point)) == stream


def test_titles_are_all_different():
    titles = [stream.title for stream in streams(quick=False)]
    assert len(titles) == len(set(titles))
    assert titles[-1] == "mixed, 4 %, bursts of 8"
