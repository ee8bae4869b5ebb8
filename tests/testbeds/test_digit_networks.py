# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from lightning_stable.testbeds.digit_networks import ViT, conv, mlp

NETWORKS = [mlp, conv, ViT]


def kinds(network):
    return {type(module) for module in network.modules()}


@pytest.mark.parametrize("network", NETWORKS)
def test_batch_norm_and_dropout_are_there_when_asked_for(network):
    assert kinds(network(8)) & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert nn.Dropout in kinds(network(8))
    assert not kinds(network(8, norm="none")) & {nn.BatchNorm1d, nn.BatchNorm2d}


@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_makes_training_random_and_evaluation_is_not(network):
    torch.manual_seed(0)
    made, pixels = network(16, dropout=0.5), torch.rand(4, 1, 8, 8)
    assert not torch.equal(made(pixels), made(pixels))
    made.eval()
    assert torch.equal(made(pixels), made(pixels))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_nan_image_spoils_the_running_statistics(network):
    made = network(8)
    made(torch.full((4, 1, 8, 8), float("nan")))
    assert any(buffer.isnan().any() for buffer in made.buffers())


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_gradient(network):
    torch.manual_seed(0)
    made = network(8, dropout=0.0)
    made(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_vit_sees_where_a_patch_is():
    torch.manual_seed(0)
    vit, pixels = ViT(8).eval(), torch.zeros(1, 1, 8, 8)
    left, right = pixels.clone(), pixels.clone()
    left[..., :2, :2] = 1
    right[..., :2, 6:] = 1
    assert not torch.equal(vit(left), vit(right))
    assert "blocks.1.attn" in dict(vit.named_modules())


def test_a_width_that_four_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"`DigitsClassifier\(width=\.\.\.\)` must be a multiple of 4 .* got 6\."):
        ViT(6)
