# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_stable.callbacks.batches.micro_gradients import MicroGradients
from lightning_stable.functional import gradient_noise

DATA = torch.randn(24, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
QUIET = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


class Net(LightningModule):
    """Measures its first window by itself."""

    def __init__(self, length, keeps_directions=False, dtype=torch.float64, step=None):
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)]
        self.layers = torch.nn.Sequential(*layers).to(dtype)
        self.never_used = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
        self.frozen = torch.nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
        self.length, self.keeps_directions, self.step, self.found = length, keeps_directions, step, []

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.micro = MicroGradients(self.parameters(), self.length, self.keeps_directions)
        batch = batch.to(self.layers[0].weight.dtype)
        return (self.step or type(self).loss)(self, batch)

    def loss(self, batch):
        return self.layers(batch).square().mean()

    def on_before_backward(self, loss):
        self.micro.begin_backward()

    def on_after_backward(self):
        self.micro.end_backward(samples=self.trainer.train_dataloader.batch_size)
        self.number = getattr(self, "number", 0) + 1
        if self.number == self.length:
            self.found.append(self.micro.finish(self.trainer))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(net, length, batch_size=3, **settings):
    trainer = Trainer(accelerator="cpu", max_steps=1, accumulate_grad_batches=length, **QUIET, **settings)
    trainer.fit(net, DataLoader(DATA, batch_size=batch_size))
    return net.found[0]


def gradients(length, batch_size=3):
    """Of each micro-batch alone."""
    net, rows = Net(length), []
    for start in range(0, length * batch_size, batch_size):
        net.zero_grad()
        net.loss(DATA[start : start + batch_size]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.layers.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [2, 3, 8])
@pytest.mark.parametrize("keeps_directions", [False, True])
def test_it_finds_what_the_gradients_of_single_micro_batches_say(length, keeps_directions):
    noise, samples = fit(Net(length, keeps_directions), length)
    expected = gradient_noise(gradients(length), samples=3)
    assert samples == 3
    assert noise.variance == pytest.approx(expected.variance, rel=1e-9)
    assert noise.mean_square == pytest.approx(expected.mean_square, rel=1e-9)
    if keeps_directions and length <= 4:
        assert noise.along == pytest.approx(expected.along, rel=1e-9)


def test_more_micro_batches_than_copies_are_gathered_in_parts():
    noise, _ = fit(Net(7, True), 7, batch_size=2)
    rows = gradients(7, batch_size=2)
    mean = rows.mean(0)
    direction = mean / mean.norm()
    parts = [rows[[0, 1]], rows[[2, 3]], rows[[4, 5]], rows[[6]]]
    spread = sum(len(part) * float(direction @ (part.mean(0) - mean)) ** 2 for part in parts)
    assert noise.along == pytest.approx(2 * spread / 3, rel=1e-9)


def test_a_gradient_scaler_cancels_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    noise, _ = fit(Net(4, dtype=torch.float32), 4, plugins=[plugin])
    expected = gradient_noise(gradients(4), samples=3)
    assert noise.variance == pytest.approx(expected.variance, rel=0.05)  # of half precision
    assert noise.mean_square == pytest.approx(expected.mean_square, rel=0.05)


def test_bfloat16_is_measured_in_float32():
    noise, _ = fit(Net(4, dtype=torch.bfloat16), 4, precision="bf16-true")
    assert noise.variance == pytest.approx(gradient_noise(gradients(4), samples=3).variance, rel=0.1)


def of_sizes(*sizes, ends_epoch=False):
    """What a window says whose gradients are samples of known noise, and those gradients."""
    weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    micro, rows = MicroGradients([weight], len(sizes), keeps_directions=True), []
    for part in torch.randn(sum(sizes), 5, dtype=torch.float64).add(1.0).split(sizes):
        rows.append(part.mean(0))
        micro.begin_backward()
        (weight @ rows[-1] / len(sizes)).backward()
        micro.end_backward(len(part))
    return micro.finish(Trainer(accelerator="cpu", **QUIET), ends_epoch), torch.stack(rows)


def test_micro_batches_of_several_sizes_have_their_harmonic_mean():
    (noise, samples), rows = of_sizes(6, 2, 3)
    mean = rows.mean(0)
    variance = 3.0 / 2 * float((rows - mean).square().sum())  # 3 / (1/6 + 1/2 + 1/3) = 3
    assert samples == pytest.approx(11 / 3)
    assert noise.variance == pytest.approx(variance, rel=1e-9)
    assert noise.mean_square == pytest.approx(float(mean.square().sum()) - variance / 9, rel=1e-9)


def test_what_several_sizes_say_is_true_in_the_mean():
    torch.manual_seed(0)
    found = [of_sizes(2, 8, 4, 16)[0][0] for _ in range(2000)]
    assert sum(noise.variance for noise in found) / len(found) == pytest.approx(5.0, rel=0.05)
    assert sum(noise.along for noise in found) / len(found) == pytest.approx(1.0, rel=0.15)
    assert sum(noise.mean_square for noise in found) / len(found) == pytest.approx(5.0, rel=0.05)


def test_one_micro_batch_says_nothing_and_neither_do_sizes_that_differ_at_an_epochs_end_or_nan():
    assert fit(Net(1), 1) is None
    assert of_sizes(3, 2, ends_epoch=True)[0] is None
    assert of_sizes(3, 3, ends_epoch=True)[0] is not None
    assert fit(Net(2, step=lambda net, batch: net.loss(batch) * torch.nan), 2) is None


def test_a_window_that_is_cut_short_says_nothing():
    net = Net(4)
    micro = MicroGradients(net.parameters(), length=4)
    for start in (0, 3, 6):  # of 4
        micro.begin_backward()
        (net.loss(DATA[start : start + 3]) / 4).backward()
        micro.end_backward(samples=3)
    assert micro.finish(Trainer(accelerator="cpu", **QUIET)) is None
    assert micro.unusable == ""


def test_gradients_that_are_asked_for_elsewhere_do_not_count():
    def with_penalty(net, batch):
        loss = net.loss(batch)
        torch.autograd.grad(loss, net.layers[0].weight, retain_graph=True)
        return loss

    noise, _ = fit(Net(2, step=with_penalty), 2)
    assert noise.variance == pytest.approx(gradient_noise(gradients(2), samples=3).variance, rel=1e-9)


def test_what_it_cannot_measure_it_says():
    def twice(net, batch):  # the same layer in two segments that are computed again
        a = checkpoint(net.layers, batch.clone().requires_grad_(), use_reentrant=True)
        return (a + checkpoint(net.layers, batch.clone().requires_grad_(), use_reentrant=True)).square().mean()

    net = Net(2, step=twice)
    assert fit(net, 2) is None
    assert "several gradients from one backward pass" in net.micro.unusable
    table = torch.nn.Embedding(4, 2, sparse=True)
    micro = MicroGradients(table.parameters(), 2)
    for _ in range(2):
        micro.begin_backward()
        table(torch.tensor([1, 2])).sum().backward()
        micro.end_backward(samples=None)
    assert "samples" in micro.unusable
    assert micro.finish(Trainer(accelerator="cpu", **QUIET)) is None


def test_it_leaves_the_gradients_alone_and_no_hook_behind():
    plain, measured = Net(2), Net(2, True)
    micro = MicroGradients(measured.parameters(), 2, keeps_directions=True)
    for net in (plain, measured):
        for start in (0, 3):
            micro.begin_backward()
            net.loss(DATA[start : start + 3]).backward()
            micro.end_backward(3)
    micro.detach()
    for a, b in zip(plain.layers.parameters(), measured.layers.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert not b._backward_hooks
