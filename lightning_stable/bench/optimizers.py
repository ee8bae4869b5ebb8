# SPDX-License-Identifier: Apache-2.0
"""What a step of the optimizers costs, in time and in memory: in turns, as ratios to torch's AdamW."""

import argparse
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from lightning_stable.bench.gradient_supply import WARM_UP, GradientSupply, transformer_shapes
from lightning_stable.bench.optimizer_table import FOREACH, FUSED, RIVAL, SPIKING, Table, make_table
from lightning_stable.bench.report import at_least_one, machine, new_file, show_progress, write_json
from lightning_stable.bench.step_turns import Entry, take_turns
from lightning_stable.optim import LAMB, SPAM, AdamAtan2, DiffGrad, Grams, SophiaG, StableSPAM

_SETTINGS: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.0}  # decay costs some of them a pass, and none less
_SMALLEST = 0.01  # million parameters
_NO_RIVAL = "pytorch_optimizer's rows are left out: it is not installed (pip install 'lightning-stable[recipes]')"


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table for each size, and return 0 whatever it says: a benchmark is no test.

    Args:
        argv: `--rounds`, `--threads`, `--sizes`, `--device`, `--all`, `--json`; None takes those of the process.

    Example:
        >>> main(["--rounds", "0"])
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    arguments = _parser().parse_args(argv)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        where = machine(arguments.threads, arguments.device)
        print(where, flush=True)
        tables = measure(arguments.sizes, arguments.rounds, arguments.device, everything=arguments.all)
    finally:
        torch.set_num_threads(threads_before)
    if arguments.json:
        write_json(arguments.json, {"machine": where, **{size: table.as_json() for size, table in tables.items()}})
    return 0


def measure(sizes: Iterable[str], rounds: int, device: torch.device, everything: bool = False) -> dict[str, Table]:
    """Print and return a table for each size.

    Args:
        sizes: About how many parameters, such as `"10M"`.
        rounds: In each of them every optimizer takes one step.
        device: Where.
        everything: Whether to measure optimizers that nothing is promised of, too.

    Example:
        >>> measure([], rounds=1, device=torch.device("cpu"))
        {}
    """
    tables = {}
    for size in sizes:
        supply = GradientSupply(transformer_shapes(_millions(size) * 1e6), device)
        entries, rivals = our_entries(everything), rival_entries()
        measured = take_turns([*entries, *rivals], supply, rounds, partial(_show_progress, size))
        _show_progress(size, None)
        tables[size] = make_table(measured, supply.size, len(supply.parameters), device.type)
        print(f"\n{tables[size]}" + ("" if rivals else f"\n  {_NO_RIVAL}"), flush=True)
    return tables


def our_entries(everything: bool = False) -> list[Entry]:
    """List what is measured of torch and of this package. SPAM is clipping from the end of the warm-up, with no resets.

    Args:
        everything: Whether to list optimizers that nothing is promised of, too.

    Example:
        >>> [entry.name for entry in our_entries()][2:4]
        ['SPAM', 'SPAM, every tensor spiking']
    """
    spam = partial(SPAM, **_SETTINGS, clip_after=WARM_UP, reset_interval=None)
    stable_spam = partial(StableSPAM, **_SETTINGS, reset_interval=None)
    entries = [
        Entry(FUSED, partial(AdamW, **_SETTINGS, fused=True)),
        Entry(FOREACH, partial(AdamW, **_SETTINGS, foreach=True)),
        Entry("SPAM", spam),
        Entry("SPAM" + SPIKING, spam, "spiked"),
        Entry("SPAM, density=0.25", partial(spam, density=0.25)),
        Entry("StableSPAM", stable_spam),
        Entry("StableSPAM" + SPIKING, stable_spam, "spiked"),
    ]
    if not everything:
        return entries
    others = (LAMB, AdamAtan2, DiffGrad, Grams)
    return [
        *entries,
        Entry("StableSPAM, ordinary gradients", stable_spam, "ordinary"),
        Entry("SophiaG", _sophia),
        *(Entry(other.__name__, partial(other, **_SETTINGS)) for other in others),
    ]


def rival_entries() -> list[Entry]:
    """List what is measured of pytorch_optimizer: nothing where it is not installed.

    Example:
        >>> all(entry.name.startswith("pytorch_optimizer.") for entry in rival_entries())
        True
    """
    try:
        import pytorch_optimizer
    except ModuleNotFoundError as error:
        if error.name != "pytorch_optimizer":
            raise
        return []
    settings = {**_SETTINGS, "update_proj_gap": 10**9}  # no resets
    spam = partial(pytorch_optimizer.SPAM, **settings, grad_accu_steps=WARM_UP)
    stable_spam = partial(pytorch_optimizer.StableSPAM, **settings)
    return [
        Entry(f"{RIVAL}{name}{', foreach' * foreach}", partial(make, foreach=foreach))
        for name, make in (("SPAM", spam), ("StableSPAM", stable_spam))
        for foreach in (False, True)
    ]


def _sophia(parameters: list[nn.Parameter]) -> SophiaG:
    optimizer = SophiaG(parameters, **_SETTINGS)
    optimizer.update_hessian()
    return optimizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-stable bench optimizers", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=15, help="of one step each (default: 15)")
    parser.add_argument("--threads", type=at_least_one, default=2, help="of torch (default: 2)")
    parser.add_argument("--sizes", type=_sizes, default="10M,50M", help="numbers of parameters (default: 10M,50M)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--all", action="store_true", help="the other optimizers, too (9 GB for 50M, instead of 6)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers there, too")
    return parser


def _millions(size: str) -> float:
    return float(size.removesuffix("M"))


def _sizes(text: str) -> list[str]:
    sizes = list(dict.fromkeys(text.split(",")))
    for size in sizes:
        if not re.fullmatch(r"\d+(\.\d+)?M", size) or _millions(size) < _SMALLEST:
            raise argparse.ArgumentTypeError(
                f"must be millions of parameters, at least {_SMALLEST}M, such as 10M,50M; got {text}"
            )
    return sizes


def _device(text: str) -> torch.device:
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("must be cpu here: torch finds no CUDA device")
    return torch.device(text)


def _show_progress(size: str, doing: str | None) -> None:
    show_progress(None if doing is None else f"{size}: {doing}")
