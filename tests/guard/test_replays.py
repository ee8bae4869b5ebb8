# SPDX-License-Identifier: Apache-2.0
"""Replays; that they lead to the same run is tested with the whole guard."""

import torch

from lightning_stable.guard.replays import Replay
from lightning_stable.snapshots.random_state import RandomState


def test_a_replay_survives_a_checkpoint(tmp_path):
    state = RandomState()
    replay = Replay([(4, 0), (5, 1)], [state, None], state, shortfall=1)
    assert replay.batches_ahead == 3
    torch.save(replay.state_dict(), tmp_path / "replay.pt")
    loaded = Replay.from_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    assert (loaded.places, loaded.shortfall, loaded.random[1]) == ([(4, 0), (5, 1)], 1, None)
    expected = torch.rand(3)
    for random in (loaded.random[0], loaded.random_after):
        random.restore()
        assert torch.equal(torch.rand(3), expected)
