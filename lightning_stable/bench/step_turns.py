# SPDX-License-Identifier: Apache-2.0
"""Optimizers that take turns in one process, one step each, so that whatever slows the machine slows all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_stable.bench.gradient_supply import WARM_UP, GradientSupply, Kind
from lightning_stable.bench.step_memory import peak_extra_bytes, state_bytes

Make = Callable[[list[nn.Parameter]], Optimizer]
"""Makes an optimizer of parameters whose gradients are there."""


@dataclass(frozen=True)
class Entry:
    """What takes turns with the others.

    Args:
        name: Of it.
        make: Makes the optimizer.
        gradients: The kind it is given.

    Example:
        >>> Entry("AdamW", torch.optim.AdamW).gradients
        'calm'
    """

    name: str
    make: Make
    gradients: Kind = "calm"


@dataclass(frozen=True)
class Measured:
    """What was found of one optimizer.

    Args:
        seconds: Of its step in each round.
        state_bytes: What it keeps between steps.
        extra_bytes: What a step needs on top of that, at its highest.
        waits: Whether its step waits for the device; `None` where there is nothing to wait for.

    Example:
        >>> Measured([0.1, 0.2], state_bytes=804, extra_bytes=0).waits is None
        True
    """

    seconds: list[float]
    state_bytes: int
    extra_bytes: int
    waits: bool | None = None


def take_turns(
    entries: Sequence[Entry], supply: GradientSupply, rounds: int, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Measured]:
    """Warm up, let all take one step in each round, in an order that moves on by one, then look at their memory.

    Args:
        entries: What takes turns.
        supply: Of parameters and gradients. Each step gets its gradients before, outside of what is measured: some
            optimizers change them.
        rounds: How many are measured.
        progress: Is told what is being done.

    Example:
        >>> supply = GradientSupply([(20, 5)], torch.device("cpu"))
        >>> measured = take_turns([Entry("SGD", torch.optim.SGD)], supply, rounds=3)
        >>> len(measured["SGD"].seconds), measured["SGD"].state_bytes
        (3, 0)
    """
    players = [_Player(entry, supply) for entry in entries]
    for turn in range(WARM_UP + rounds):
        progress(f"warming up, {turn} of {WARM_UP}" if turn < WARM_UP else f"round {turn - WARM_UP} of {rounds}")
        first = turn % len(players)
        for player in players[first:] + players[:first]:
            player.take_step()
    measured = {}
    for entry in entries:
        progress(f"memory of {entry.name}")
        measured[entry.name] = players.pop(0).measured()  # and forget it
    return measured


class _Player:
    """An optimizer, and how long its steps took."""

    def __init__(self, entry: Entry, supply: GradientSupply) -> None:
        self._entry, self._supply = entry, supply
        self._steps = 0
        self._seconds: list[float] = []
        self._give_gradients()  # some estimate curvature from them at once
        self._optimizer = entry.make(supply.parameters)

    def take_step(self) -> None:
        self._give_gradients()
        self._finish()
        began = time.perf_counter()
        self._optimizer.step()
        self._finish()
        self._seconds.append(time.perf_counter() - began)
        self._steps += 1

    def measured(self) -> Measured:
        device = self._supply.device
        self._give_gradients()
        extra = peak_extra_bytes(self._optimizer.step, device)
        self._steps += 1
        self._give_gradients()
        waits = _waits(self._optimizer.step) if device.type == "cuda" else None
        return Measured(self._seconds[WARM_UP:], state_bytes(self._optimizer), extra, waits)

    def _give_gradients(self) -> None:
        self._supply.give(self._entry.gradients, self._steps)

    def _finish(self) -> None:
        if self._supply.device.type == "cuda":
            torch.cuda.synchronize(self._supply.device)


def _waits(run: Callable[[], object]) -> bool:
    """Whether something makes the host wait for the current CUDA device; if so, it is ended there."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False
