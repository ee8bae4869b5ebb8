# SPDX-License-Identifier: Apache-2.0
"""Optimizers that are not written here but taken from libraries: which are what their papers say, and which are not.

The rules below restate the papers' equations, one tensor and one step at a time, in float64.
"""

import io
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_stable.callbacks import CreateGraph
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.optim import reset_moments
from tests.faulty_runs import Net, TextNet, assert_same, make_batches, run
from tests.small_fit import LIGHTNING_CLI_WARNS, small_fit

po = pytest.importorskip("pytorch_optimizer")

PRESETS = sorted((Path(__file__).parents[2] / "recipes" / "optimizers").glob("*.yaml"))
SHAPES = ((4, 6), (5,), (2, 3, 2, 2))
BETAS = (0.9, 0.99)


def start(shapes=SHAPES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def gradients(shapes=SHAPES, missing=True):
    """One tensor for each parameter and step, of changing size; some are missing, the second one's first two too."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = [[draw(shape) * (1 + t % 5) for shape in shapes] for t in range(45)]
    for t, i in ((0, 1), (1, 1), (7, 0), (8, 0), (20, 1), (21, -1)) if missing else ():
        rows[t][i] = None
    return rows


def take_step(optimizer, row):
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, row, strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter.dtype, copy=True)
    squares = [torch.ones_like(p) if p.grad is None else p.grad**2 for p in parameters]  # any diagonal will do
    optimizer.step(**{"hessian": squares} if isinstance(optimizer, po.AdaHessian) else {})
    return [parameter.detach().clone() for parameter in parameters]


def library(make, rows, weights=None):
    """The weights after each step of an optimizer."""
    optimizer = make([nn.Parameter(weight.clone()) for weight in weights or start()])
    return [take_step(optimizer, row) for row in rows]


def restated(rule, rows, weights=None, **arguments):
    """The weights after each step of a rule; parameters without a gradient stay, and the count of steps goes on."""
    weights, trajectory = list(weights or start()), []
    memories = [{} for _ in weights]
    for t, row in enumerate(rows, 1):
        for i, gradient in enumerate(row):
            if gradient is not None:
                weights[i] = rule(weights[i], gradient, memories[i], t, **arguments)
        trajectory.append(list(weights))
    return trajectory


def distance(one, other):
    """The largest difference, in units of the largest weight of its tensor."""
    pairs = [pair for step in zip(one, other, strict=True) for pair in zip(*step, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


# The rules


def moments(memory, gradient):
    memory["m"] = BETAS[0] * memory.get("m", 0.0) + (1 - BETAS[0]) * gradient
    memory["v"] = BETAS[1] * memory.get("v", 0.0) + (1 - BETAS[1]) * gradient**2
    return memory["m"], memory["v"]


def lamb(w, g, memory, t, lr, weight_decay, eps=1e-6, corrected=True, largest_norm=math.inf):
    m, v = moments(memory, g)
    if corrected:
        m, v = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
    r = m / (v.sqrt() + eps) + weight_decay * w
    return w - lr * min(float(w.norm()), largest_norm) / r.norm() * r


def adan(w, g, memory, t, lr, weight_decay, betas=(0.98, 0.92, 0.99), eps=1e-8):
    b1, b2, b3 = betas
    d = g - memory.get("g", g)
    m = memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * g
    v = memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * d
    n = memory["n"] = b3 * memory.get("n", 0.0) + (1 - b3) * (g + b2 * d) ** 2
    memory["g"] = g
    step = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / ((n / (1 - b3**t)).sqrt() + eps)
    return (w - lr * step) / (1 + lr * weight_decay)


def lion(w, g, memory, t, lr, weight_decay):
    m = memory.get("m", torch.zeros_like(g))
    u = torch.sign(BETAS[0] * m + (1 - BETAS[0]) * g)
    memory["m"] = BETAS[1] * m + (1 - BETAS[1]) * g
    return w - lr * (u + weight_decay * w)


def adamp(w, g, memory, t, lr, weight_decay, eps=1e-8, corrects_eps=False, delta=0.1, ratio=0.1):
    m, v = moments(memory, g)
    root = (1 - BETAS[1] ** t) ** 0.5
    p = m / (1 - BETAS[0] ** t) / (v.sqrt() / root + eps / (root if corrects_eps else 1.0))
    for rows in (len(w), 1) if w.ndim > 1 else ():  # channels, then the layer
        ws, gs, ps = (x.reshape(rows, -1) for x in (w, g, p))
        cosine = ((ws * gs).sum(1) / (ws.norm(dim=1) * gs.norm(dim=1))).abs()
        if cosine.max() < delta / ws.shape[1] ** 0.5:
            unit = ws / (ws.norm(dim=1, keepdim=True) + eps)
            p = (ps - unit * (unit * ps).sum(1, keepdim=True)).reshape(w.shape)
            return w - lr * (p + weight_decay * ratio * w)
    return w - lr * (p + weight_decay * w)


def adahessian(w, g, memory, t, lr, weight_decay, power=1.0, eps=1e-4):
    m = memory["m"] = BETAS[0] * memory.get("m", 0.0) + (1 - BETAS[0]) * g
    v = memory["v"] = BETAS[1] * memory.get("v", 0.0) + (1 - BETAS[1]) * (g * g) ** 2  # the diagonal of `take_step`
    denominator = (v / (1 - BETAS[1] ** t)).sqrt() ** power + eps
    return w - lr * (m / (1 - BETAS[0] ** t) / denominator + weight_decay * w)


def muon(w, g, memory, t, lr, weight_decay, momentum=0.95, moonlight=False):
    memory["b"] = momentum * memory.get("b", 0.0) + g
    x = (g + momentum * memory["b"]) / (g + momentum * memory["b"]).norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    scale = 0.2 * max(w.shape) ** 0.5 if moonlight else max(1.0, len(w) / w.shape[1]) ** 0.5
    return w * (1 - lr * weight_decay) - lr * scale * x


def schedule_free(y, g, memory, t, lr, weight_decay, warmup=10, eps=1e-8, bias_in_lr=False):
    """Weights are y = (1 - b1) z + b1 x, where gradients are taken; z steps, x averages."""
    z, x = memory.get("z", y), memory.get("x", y)
    v = memory["v"] = BETAS[1] * memory.get("v", 0.0) + (1 - BETAS[1]) * g**2
    rates = [lr * min(1.0, i / warmup) * ((1 - BETAS[1] ** i) ** 0.5 if bias_in_lr else 1.0) for i in range(1, t + 1)]
    v = v if bias_in_lr else v / (1 - BETAS[1] ** t)
    c = rates[-1] ** 2 / sum(rate**2 for rate in rates)
    memory["z"] = z - rates[-1] * (g / (v.sqrt() + eps) + weight_decay * y)
    memory["x"] = (1 - c) * x + c * memory["z"]
    return (1 - BETAS[0]) * memory["z"] + BETAS[0] * memory["x"]


SHARED = {"lr": 0.01, "weight_decay": 0.1}
COMMON = {**SHARED, "betas": BETAS}


def make_muon(parameters, **more):
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    return po.Muon([{"params": matrices, "use_muon": True}], **SHARED, **more)


MAKE = {
    "adan": lambda parameters, **more: po.Adan(parameters, **SHARED, **more),
    "lion": lambda parameters, **more: po.Lion(parameters, **COMMON, **more),
    "adamp": lambda parameters, **more: po.AdamP(parameters, **COMMON, **more),
    "adahessian": lambda parameters, **more: po.AdaHessian(parameters, eps=1e-4, **COMMON, **more),
    "schedule_free": lambda parameters, **more: po.ScheduleFreeAdamW(parameters, warmup_steps=10, **COMMON, **more),
    "muon": make_muon,
}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
EARLY = pytest.param(partial(Rollback, mode="replay"), 50)
keeps_graph = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("rule", [adan, lion, adamp, adahessian, schedule_free])
def test_it_is_what_the_paper_says(rule, foreach):
    eps = {"eps": 0.0} if rule is adamp else {}  # see below
    actual = library(partial(MAKE[rule.__name__], foreach=foreach, **eps), gradients())
    assert distance(actual, restated(rule, gradients(), **SHARED, **eps)) < 1e-12


@pytest.mark.parametrize("moonlight", [False, True])
def test_muon_of_both_libraries_is_what_is_published_to_the_precision_of_bfloat16(moonlight):
    shapes = ((4, 6), (8, 3), (2, 3))
    published = restated(muon, gradients(shapes), start(shapes), moonlight=moonlight, **SHARED)[-1]
    torchs = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw" if moonlight else "original", **SHARED)
    for make in (torchs, partial(make_muon, use_adjusted_lr=moonlight)):
        weights = library(make, gradients(shapes), start(shapes))[-1]
        for weight, expected, first in zip(weights, published, start(shapes), strict=True):
            assert (weight - expected).norm() < 0.01 * (weight - first).norm()


# Where a library leaves the paper; these fail when it comes back, and the presets' headers want a change then


@pytest.mark.parametrize("decouple", [False, True], ids=["decay_inside", "decay_outside"])
@pytest.mark.parametrize("more", [{}, {"adam_debias": True}, {"rectify": True}, {"pre_norm": True}], ids=str)
def test_lamb_of_pytorch_optimizer_is_not_the_paper_whatever_its_arguments(decouple, more):
    actual = library(lambda p: po.Lamb(p, weight_decouple=decouple, **COMMON, **more), gradients())
    assert distance(actual, restated(lamb, gradients(), **SHARED)) > 0.01


def test_lamb_of_pytorch_optimizer_without_its_own_debias_is_the_paper_without_bias_correction():
    actual = library(lambda p: po.Lamb(p, weight_decouple=False, adam_debias=True, **COMMON), gradients())
    assert distance(actual, restated(lamb, gradients(), corrected=False, largest_norm=10.0, **SHARED)) < 1e-6


def test_adamp_of_pytorch_optimizer_divides_eps_by_the_bias_correction():
    actual = library(partial(MAKE["adamp"], eps=0.1), gradients())
    assert distance(actual, restated(adamp, gradients(), eps=0.1, corrects_eps=True, **SHARED)) < 1e-12
    assert distance(actual, restated(adamp, gradients(), eps=0.1, **SHARED)) > 1e-3


def test_schedule_free_of_pytorch_optimizer_has_its_bias_correction_in_the_denominator_and_not_in_lr():
    actual = library(MAKE["schedule_free"], gradients())
    assert distance(actual, restated(schedule_free, gradients(), bias_in_lr=True, **SHARED)) > 1e-3


def test_a_nan_stops_a_tensor_under_lion_for_good_without_a_trace_in_its_weights():
    rows = [[torch.full((4, 6), math.nan)], [torch.ones(4, 6)], [torch.ones(4, 6)]]
    for weights in library(lambda parameters: po.Lion(parameters, lr=0.1), rows, start(((4, 6),))):
        assert_same(weights, start(((4, 6),)))  # the sign of NaN is 0 in torch


def test_adan_sees_no_difference_in_a_constant_gradient_and_moves_by_lr():
    weights = library(lambda p: po.Adan(p, lr=0.01), gradients(missing=False)[:1] * 20)[-1]
    for weight, first, gradient in zip(weights, start(), gradients(missing=False)[0], strict=True):
        assert torch.allclose(weight, first - 20 * 0.01 * gradient.sign(), atol=1e-6)


def test_lion_moves_every_weight_by_lr():
    trajectory = library(lambda p: po.Lion(p, lr=0.01), gradients(missing=False))
    for pair in pairwise(trajectory):
        for old, new in zip(*pair, strict=True):
            assert torch.allclose((new - old).abs(), torch.full_like(old, 0.01))


def test_adamp_takes_the_radial_part_out_where_weights_are_scale_invariant():
    first, memory = start(((8, 12),))[0], {}
    weights = [nn.Parameter(first.clone()) for _ in range(2)]
    optimizers = po.AdamP(weights[:1], lr=0.05, weight_decay=0.1, betas=BETAS), torch.optim.Adam(weights[1:], lr=0.05)
    for t in range(1, 46):
        old = weights[0].detach().clone()
        for weight, optimizer in zip(weights, optimizers, strict=True):
            optimizer.zero_grad()
            (nn.functional.normalize(weight, dim=1) - first.flip(0)).square().sum().backward()
            optimizer.step()
        expected = adamp(old, weights[0].grad, memory, t, lr=0.05, weight_decay=0.1, corrects_eps=True)
        assert torch.allclose(weights[0], expected, rtol=1e-11)
        along = ((weights[0] - old) * old).sum(1)  # only the decay is, a tenth of it
        assert torch.allclose(along, -0.05 * 0.1 * 0.1 * old.square().sum(1), atol=1e-5)
    assert weights[0].norm() < 1.15 * first.norm() < weights[1].norm()


@keeps_graph
def test_adahessian_takes_newtons_step_on_a_separable_quadratic_from_a_closure_that_keeps_the_graph():
    curvature, weight = start()[2].abs(), nn.Parameter(start()[2])
    optimizer, before = po.AdaHessian([weight], lr=1.0), torch.get_rng_state()
    optimizer.step(lambda: (curvature * weight**2 / 2).sum().backward(create_graph=True))
    weight.grad = None  # the cycle that torch warns of
    assert weight.abs().max() < 1e-12  # so it leaves the paper too, which averages over a kernel, the last two axes
    assert not torch.equal(torch.get_rng_state(), before)  # Hutchinson's signs are torch's global random numbers


def test_muon_brings_all_singular_values_of_the_update_near_one():
    gradient = torch.randn(16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient *= torch.logspace(-1, 1, 16, dtype=torch.float64)[:, None]
    for make in (partial(torch.optim.Muon, lr=0.01), make_muon):
        weight = nn.Parameter(torch.zeros(16, 32, dtype=torch.float64))
        take_step(make([weight]), [gradient])
        singular = torch.linalg.svdvals(weight.detach() / 0.01)
        assert ((singular > 0.6) & (singular < 1.3)).all()


def test_schedule_free_shows_the_mean_of_its_fast_weights_after_eval_and_goes_on_after_train():
    optimizer = po.ScheduleFreeAdamW([weight := nn.Parameter(start()[0])], lr=0.01)
    fast = []
    for row in gradients(SHAPES[:1], missing=False):
        take_step(optimizer, row)
        fast.append(optimizer.state[weight]["z"].clone())
    trained = weight.detach().clone()
    optimizer.eval()
    assert torch.allclose(weight, torch.stack(fast).mean(0), rtol=1e-10)
    optimizer.train()
    assert torch.allclose(weight, trained, rtol=1e-12)  # to rounding: not bit for bit
    optimizer.eval()
    take_step(optimizer, row)  # a step from the average is not refused, though it is wrong


@each
def test_a_run_that_is_saved_and_loaded_in_the_middle_ends_the_same_to_the_last_bit(make):
    rows = gradients(SHAPES[::2])  # matrices, for Muon
    whole = make([nn.Parameter(weight) for weight in start(SHAPES[::2])])
    middle = [take_step(whole, row) for row in rows[:20]][-1]
    torch.save(whole.state_dict(), file := io.BytesIO())
    resumed = make([nn.Parameter(weight) for weight in middle])
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for row in rows[20:]:
        assert_same(take_step(resumed, row), take_step(whole, row))
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", ["lion", "adamp", "adahessian", "muon"])  # the others remember gradients or weights
def test_after_a_reset_of_all_moments_it_goes_on_as_if_new(name):
    rows, shapes = gradients(SHAPES[::2], missing=False), SHAPES[::2]
    used = MAKE[name]([nn.Parameter(weight) for weight in start(shapes)])
    middle = [take_step(used, row) for row in rows[:20]][-1]
    assert reset_moments(used, "all") > 0
    new = MAKE[name]([nn.Parameter(weight) for weight in middle])
    for row in rows[20:25]:
        assert_same(take_step(used, row), take_step(new, row))


@each
def test_bfloat16_stays_bfloat16_and_finite(make):
    first = start(SHAPES[::2], torch.bfloat16)
    for weight, before in zip(library(make, gradients(SHAPES[::2]), first)[-1], first, strict=True):
        assert weight.dtype == torch.bfloat16
        assert weight.isfinite().all()
        assert not torch.equal(weight, before)


@each
def test_no_gradient_moves_nothing_a_zero_one_is_harmless_and_a_nan_stays_in_its_tensor(make):
    first = start(((4, 6), (3, 5)))
    assert_same(library(make, [[None, None]], first)[0], first)
    zeros = [[torch.zeros_like(weight) for weight in first]] * 3
    assert all(weight.isfinite().all() for weight in library(make, zeros, first)[-1])
    row = [torch.full_like(first[0], math.nan), torch.ones_like(first[1])]
    assert library(make, [row], first)[0][1].isfinite().all()


@pytest.mark.parametrize("name", [name for name in MAKE if name != "adahessian"])
@pytest.mark.parametrize(("response", "every"), [(SkipStep, 50), (partial(Rollback, mode="replay"), 2), EARLY])
def test_the_guard_undoes_a_bad_step_of_it_to_the_last_bit(name, response, every):
    guard = SpikeGuard(ladder=[response(times=5)], snapshot_every=every)
    model = partial(Net, optimizer=lambda parameters: MAKE[name](list(parameters)))
    spoilt = run(make_batches(14, bad=(4, 9)), [guard], model=model, epochs=1)
    batches = [batch for index, batch in enumerate(make_batches(14)) if index not in (4, 9)]
    clean = run(batches, model=model, epochs=1)
    assert len(guard.incidents) == 2
    assert_same([spoilt.weights, spoilt.optimizers], [clean.weights, clean.optimizers])


def test_muon_takes_no_plain_list_of_parameters_and_needs_groups_made_from_the_model():
    with pytest.raises(ValueError, match="only supports 2D"):
        torch.optim.Muon(TextNet().parameters())
    with pytest.raises(RuntimeError, match="__contains__"):
        po.Muon(TextNet().parameters())

    class MuonNet(TextNet):
        def configure_optimizers(self):
            return po.optimizer.muon.prepare_muon_parameters(self, "muon", lr=0.02, weight_decay=0.1, adamw_lr=3e-3)

    trainer = run(make_batches(2, kind="text"), model=MuonNet).trainer
    hidden, rest = ({id(p) for p in group["params"]} for group in trainer.optimizers[0].param_groups)
    named = dict(trainer.lightning_module.named_parameters())
    assert hidden == {id(p) for name, p in named.items() if "blocks" in name and p.ndim == 2}
    assert rest == {id(p) for p in named.values()} - hidden


@keeps_graph
def test_adahessian_needs_a_module_that_keeps_the_graph_in_backward():
    class KeepsGraph(Net):
        def backward(self, loss):
            loss.backward(create_graph=True)

    make = partial(po.AdaHessian, lr=0.1, eps=1e-4)
    assert run(make_batches(3), model=partial(KeepsGraph, optimizer=make), epochs=1).global_step == 3
    with pytest.raises(RuntimeError, match="does not require grad"):
        run(make_batches(3), model=partial(Net, optimizer=make))
    assert run(make_batches(3), [CreateGraph()], model=partial(Net, optimizer=make), epochs=1).global_step == 3


@pytest.mark.parametrize("recipe", ["charlm_adamw", "charlm_stable"])
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS, "ignore:.*the run ends inside the warmup")
def test_a_preset_starts_with_a_recipe(path, recipe, tmp_path, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    expected = yaml.safe_load(path.read_text())["optimizer"]
    pytest.importorskip(expected["class_path"].rpartition(".")[0], exc_type=ImportError)
    assert small_fit(tmp_path, "--config", str(path), "--optimizer.lr=0.002", steps=2, recipe=recipe) == 0
    used = yaml.safe_load((tmp_path / "run" / "version_0" / "config.yaml").read_text())["optimizer"]
    assert used["init_args"].items() >= {**expected["init_args"], "lr": 0.002}.items()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_presets_header_says_where_it_comes_from_and_what_it_needs_and_every_number_why(path):
    lines = path.read_text().splitlines()
    assert {"# paper", "# library", "# needs", "# use", "# change"} <= {line.partition(":")[0] for line in lines}
    assert max(map(len, lines)) <= 120
    assert all("#" in line or not any(map(str.isdigit, line)) for line in lines)
