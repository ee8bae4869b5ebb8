# SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import torch

from lightning_stable.snapshots.random_state import RandomState


def draw():
    random.gauss(0, 1)  # leaves half a pair behind, which belongs to the state
    np.random.randn()
    return torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()


def test_all_generators_repeat_themselves():
    draw()
    state = RandomState()
    first = draw()
    state.restore()
    assert draw() == first


def test_it_survives_a_checkpoint_that_is_loaded_with_weights_only(tmp_path):
    random.gauss(0, 1)
    np.random.randn()
    state = RandomState()
    torch.save(state.state_dict(), tmp_path / "state.pt")
    first = draw()
    RandomState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)).restore()
    assert draw() == first


def test_taking_it_draws_nothing():
    state = RandomState()
    first = draw()
    state.restore()
    RandomState().state_dict()
    assert draw() == first


def test_states_of_devices_that_are_not_there_are_passed_over(monkeypatch):
    state, restored = RandomState(), []
    state._cuda = [torch.zeros(16, dtype=torch.uint8)] * 2
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.extend)
    for devices in (0, 1, 2, 3):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        state.restore()
    assert len(restored) == 0 + 1 + 2 + 2
