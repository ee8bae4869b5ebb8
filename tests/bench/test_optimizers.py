# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable bench optimizers` on models that are tiny: its rows, and that they are what their names say."""

import json
import sys

import pytest
import torch

from lightning_stable.bench import optimizers
from lightning_stable.bench.gradient_supply import WARM_UP, GradientSupply
from lightning_stable.bench.optimizers import main, our_entries, rival_entries
from lightning_stable.functional.ada_clip import ada_clip
from lightning_stable.functional.spike_clip import spike_clip
from lightning_stable.optim import spam, stable_spam

ADAMW = ["AdamW fused", "AdamW foreach"]
OURS = ["SPAM", "SPAM, every tensor spiking", "SPAM, density=0.25", "StableSPAM", "StableSPAM, every tensor spiking"]
OTHERS = ["StableSPAM, ordinary gradients", "SophiaG", "LAMB", "AdamAtan2", "DiffGrad", "Grams"]
RIVALS = [f"pytorch_optimizer.{name}{way}" for name in ("SPAM", "StableSPAM") for way in ("", ", foreach")]
TINY = ["--sizes", "0.03M", "--rounds", "2", "--threads", "1"]
SHAPES = [(40, 20), (20,), (20, 10), (10,)]
STEPS = WARM_UP + 5

rivals_are_installed = pytest.mark.skipif(not rival_entries(), reason="pytorch_optimizer is not installed")


@pytest.fixture
def no_rival(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)


def steps_of(name):
    """Yield optimizer and supply before each step, from the end of the warm-up."""
    entry = next(entry for entry in [*our_entries(everything=True), *rival_entries()] if entry.name == name)
    supply = GradientSupply(SHAPES, torch.device("cpu"))
    supply.give(entry.gradients, 0)
    optimizer = entry.make(supply.parameters)
    for step in range(STEPS):
        supply.give(entry.gradients, step)
        if step >= WARM_UP:
            yield optimizer, supply
        optimizer.step()


def clipped_of(name, module, function, monkeypatch):
    """How many times `function` changed something in each step."""
    counts = []

    def noted(gradient, *args, **options):
        result = function(gradient, *args, **options)
        counts[-1:] = [counts[-1] + (not torch.equal(result, gradient))] if counts else []
        return result

    monkeypatch.setattr(module, function.__name__, noted)
    for _ in steps_of(name):
        counts.append(0)
    return counts


# What is measured


@pytest.mark.parametrize(
    ("name", "in_each_step"), [("SPAM", 0), ("SPAM, density=0.25", 0), ("SPAM, every tensor spiking", len(SHAPES))]
)
def test_spam_clips_the_spikes_and_nothing_else(name, in_each_step, monkeypatch):
    assert clipped_of(name, spam, spike_clip, monkeypatch) == [in_each_step] * (STEPS - WARM_UP)


def test_spam_is_looking_for_spikes_where_there_are_none(monkeypatch):
    looked = []
    monkeypatch.setattr(spam, "spike_clip", lambda gradient, v, _: looked.append(v) or gradient)
    for _ in steps_of("SPAM"):
        looked.clear()
    assert len(looked) == len(SHAPES)


def test_stable_spam_clips_nothing_that_is_calm(monkeypatch):
    assert clipped_of("StableSPAM", stable_spam, ada_clip, monkeypatch) == [0] * (STEPS - WARM_UP)


def test_stable_spam_clips_every_tensor_where_all_are_spiking(monkeypatch):
    counts = clipped_of("StableSPAM, every tensor spiking", stable_spam, ada_clip, monkeypatch)
    assert counts == [len(SHAPES)] * (STEPS - WARM_UP)  # those for the norm are not counted


def test_ordinary_gradients_are_clipped_now_and_then(monkeypatch):
    counts = clipped_of("StableSPAM, ordinary gradients", stable_spam, ada_clip, monkeypatch)
    assert 0 < sum(counts) < len(SHAPES) * len(counts)


def test_the_second_moment_of_a_spike_grows_as_if_it_had_been_at_its_limit():
    for optimizer, supply in steps_of("SPAM, every tensor spiking"):
        spikes = [int(gradient.argmax()) for gradient in supply.gradients]
        states = [optimizer.state[parameter]["exp_avg_sq"].view(-1) for parameter in supply.parameters]
        before = [float(v[place]) for v, place in zip(states, spikes, strict=True)]
    after = [float(v[place]) for v, place in zip(states, spikes, strict=True)]
    assert after == pytest.approx([(0.999 + 0.001 * 5000) * v for v in before], rel=1e-4)


@rivals_are_installed
@pytest.mark.filterwarnings("ignore")
def test_the_rivals_spam_is_clipping_too():
    for foreach in ("", ", foreach"):
        *_, (optimizer, supply) = steps_of(f"pytorch_optimizer.SPAM{foreach}")
        before = optimizer.state[supply.parameters[1]]["exp_avg_sq"].clone()
        supply.parameters[1].grad.fill_(1e6)
        optimizer.step()
        after = optimizer.state[supply.parameters[1]]["exp_avg_sq"]
        torch.testing.assert_close(after, (0.999 + 0.001 * 5000) * before, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_reset_meanwhile(name):
    *_, (optimizer, supply) = steps_of(name)
    assert optimizer.param_groups[0]["reset_interval"] is None
    assert optimizer.state[supply.parameters[0]]["step"] == STEPS
    assert all(parameter.isfinite().all() for parameter in supply.parameters)


# The table


@rivals_are_installed
def test_every_row_is_printed_and_written(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main([*TINY, "--all", "--json", str(tmp_path / "out.json")]) == 0
    assert torch.get_num_threads() == threads
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Python ")
    assert "1 CPU thread\n" in out
    assert "31,184 parameters in 115 tensors" in out
    content = json.loads((tmp_path / "out.json").read_text())
    assert f"torch {torch.__version__}" in content["machine"]
    rows = {row["name"]: row for row in content["0.03M"]["rows"]}
    assert list(rows) == [*ADAMW, *OURS, *OTHERS, *RIVALS]
    assert all(f"\n  {name} " in out for name in rows)
    assert rows["AdamW fused"]["to_fused"] == [1.0, 1.0, 1.0]
    assert rows["AdamW foreach"]["to_foreach"] == 1.0
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert content["0.03M"]["rounds"] == 2
    assert list(content["0.03M"]["speed_ups"]) == ["SPAM", "StableSPAM"]
    assert content["0.03M"]["promises"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_state_and_extra_memory_are_what_is_known_of_adamw(no_rival):
    table = optimizers.measure(["0.03M"], rounds=1, device=torch.device("cpu"))["0.03M"]
    rows = {row.name: row for row in table.rows}
    for name in ("AdamW fused", "AdamW foreach", "SPAM"):
        assert rows[name].state == 8 + 4 * table.tensors / table.parameters
    assert rows["AdamW fused"].extra < 0.01
    assert rows["AdamW foreach"].extra == pytest.approx(4.0, abs=0.01)
    assert 2 < rows["SPAM, density=0.25"].state < 3


def test_without_the_rival_one_line_says_why_its_rows_are_missing(no_rival, capsys):
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in [*ADAMW, *OURS])
    assert not any(f"\n  {name} " in out for name in [*OTHERS, *RIVALS])
    assert out.count("pytorch_optimizer") == 1 == out.count("left out: it is not installed")


def test_a_module_that_the_rival_lacks_is_not_taken_for_the_rival(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "pytorch_optimizer":
                raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    monkeypatch.delitem(sys.modules, "pytorch_optimizer", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        rival_entries()


def test_sizes_are_measured_one_after_the_other_and_once_each(no_rival, tmp_path, capsys):
    assert main([*TINY, "--rounds", "1", "--sizes", "0.03M,0.01M,0.03M", "--json", str(tmp_path / "out.json")]) == 0
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["machine", "0.03M", "0.01M"]
    assert capsys.readouterr().out.count("AdamW fused  ") == 2


def test_a_terminal_is_told_what_is_being_done(no_rival, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(TINY) == 0
    err = capsys.readouterr().err
    for said in ("0.03M: warming up, 0 of 6", "0.03M: round 1 of 2", "0.03M: memory of StableSPAM"):
        assert f"\r{said} " in err
    assert err.endswith("\r" + 70 * " " + "\r")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: must be a whole number, at least 1, got 0"),
        (["--threads", "two"], "argument --threads: must be a whole number, at least 1, got two"),
        (
            ["--sizes", "10"],
            "argument --sizes: must be millions of parameters, at least 0.01M, such as 10M,50M; got 10",
        ),
        (["--sizes", "0.001M"], "at least 0.01M, such as 10M,50M; got 0.001M"),
        (["--sizes", "10M,"], "at least 0.01M, such as 10M,50M; got 10M,"),
        (["--device", "tpu"], "argument --device: must be cpu or cuda, got tpu"),
        (
            ["--json", "no/such/folder/out.json"],
            "argument --json: must be a file in a folder that exists, got no/such/",
        ),
        (["--json", "."], "argument --json: must be a file in a folder that exists, got ."),
        (["--steps", "5"], "unrecognized arguments: --steps 5"),
    ],
)
def test_wrong_arguments_are_exit_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_cuda_is_refused_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        main(["--device", "cuda"])
    assert error.value.code == 2
    assert "argument --device: must be cpu here: torch finds no CUDA device" in capsys.readouterr().err
