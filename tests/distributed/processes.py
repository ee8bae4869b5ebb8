# SPDX-License-Identifier: Apache-2.0
"""Run checks in two processes that talk through gloo, and the small network that they train."""

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor import DTensor

LIMIT = 150  # seconds for all checks of a module
SPIKES, NAN_IN_ONE_ENTRY, NAN_EVERYWHERE = (5, 17, 29), (8, 21), (25,)  # steps, always on rank 1 only

Check = Callable[[int, Path], Any]


def on_two_ranks(checks: dict[str, Check], folder: Path) -> dict[str, list[Any]]:
    """What each check(rank, folder of its own) returns on rank 0 and on rank 1: tensors, numbers and strings.

    Each check has a process group of its own, so that one that fails takes no other one along. Where one hangs, all are
    killed, and it is said where each rank was. Ranks meet in a file: no port is needed.
    """
    arguments = (checks, folder, time.time() + LIMIT)
    context = mp.start_processes(_work, arguments, nprocs=2, join=False, start_method="spawn")
    deadline = time.monotonic() + LIMIT + 5
    try:
        while not context.join(timeout=max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                stacks = "\n".join(f"{path.stem}: {path.read_text()}" for path in sorted(folder.glob("*.stack")))
                raise TimeoutError(f"two ranks did not finish {list(checks)} in {LIMIT} s:\n{stacks}")
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {name: [result[name] for result in results] for name in checks}


def of_both(results: dict[str, list[Any]], name: str) -> list[Any]:
    """The results of one check on both ranks."""
    for rank, result in enumerate(results[name]):
        assert not isinstance(result, str), f"{name} failed on rank {rank}:\n{result}"
    return results[name]


def become(rank: int) -> None:
    """Set up what a launcher would."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # a test before this one may have left it, and Lightning would seed by it
    os.environ.update(GLOO_SOCKET_IFNAME="lo0" if sys.platform == "darwin" else "lo", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)


def join_group(rank: int, store: dist.Store) -> None:
    """Meet the other rank in `store`."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    torch.manual_seed(rank)  # the global generators differ from the start


def _work(rank: int, checks: dict[str, Check], folder: Path, deadline: float) -> None:
    become(rank)
    store, results = dist.FileStore(str(folder / "store"), 2), {}
    with (folder / f"{rank}.stack").open("w") as stack:
        faulthandler.dump_traceback_later(deadline - time.time(), file=stack)
        for number, (name, check) in enumerate(checks.items()):
            join_group(rank, dist.PrefixStore(str(number), store))
            try:
                results[name] = check(rank, folder / str(number))
            except Exception:
                results[name] = traceback.format_exc()
            dist.destroy_process_group()  # a rank that still waits for this one is told so
        faulthandler.cancel_dump_traceback_later()
    torch.save(results, folder / f"{rank}.pt")
    os._exit(0)  # now and then the interpreter's end aborts in a thread that gloo has left running


class Net(nn.Module):
    """Its shards on two ranks are uneven: of 3 rows, of 5 entries, and of 1 row, which leaves rank 1 with nothing."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)
        self.gain = nn.Parameter(torch.ones(5))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(dtype)

    def forward(self, x, y, z):
        return (self.head(self.body(x)) - y).square().mean() + (self.gain * z).sum()


def batch(step: int, rank: int, net: nn.Module, faults: bool = True):
    """A function of the step and the rank, with spikes and NaN on rank 1; the gradient of `gain` is z itself."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    x, y, z = (torch.randn(shape, generator=generator) for shape in ((6, 4), (6, 1), (5,)))
    if rank == 1 and step in SPIKES:
        y, z = 300 * y, 300 * z
    if rank == 1 and faults and step in NAN_IN_ONE_ENTRY:
        z[2] = torch.nan
    if rank == 1 and faults and step in NAN_EVERYWHERE:
        x[0, 0] = torch.nan
    dtype = next(net.parameters()).dtype
    return x.to(dtype), y.to(dtype), z.to(dtype)


def backward(net: nn.Module, step: int, ranks: tuple[int, ...], faults: bool = True) -> None:
    """The mean gradient over ranks; one process takes their halves in turn, which rounds as an all-reduce of two."""
    for rank in ranks:
        (net(*batch(step, rank, net, faults)) / len(ranks)).backward()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def everything(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and the optimizer's state, whole, by the number of the parameter."""
    found = {"steps_taken": torch.tensor(optimizer.param_groups[0].get("steps_taken", 0))}
    for number, parameter in enumerate(net.parameters()):
        found[f"{number}"] = whole(parameter)
        state = optimizer.state[parameter].items()
        found.update({f"{number}.{name}": whole(value) for name, value in state})
    return found


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Bit for bit; NaN equals NaN."""
    assert left.keys() == right.keys()
    assert [name for name in left if left[name].dtype != right[name].dtype] == []
    assert [name for name in left if not torch.equal(left[name].isnan(), right[name].isnan())] == []
    assert [name for name in left if not torch.equal(left[name].nan_to_num(7.0), right[name].nan_to_num(7.0))] == []


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
