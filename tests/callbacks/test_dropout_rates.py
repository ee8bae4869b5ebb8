# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from lightning_stable.callbacks.dropout_rates import dropout_rates
from lightning_stable.testbeds import GPT


class DropPath(nn.Module):
    """As timm spells it."""

    def __init__(self, drop_prob=0.3):
        super().__init__()
        self.drop_prob = drop_prob


class StochasticDepth(nn.Module):
    """As torchvision spells it."""

    def __init__(self, p=0.4):
        super().__init__()
        self.p = p
        self.mode = "row"


class Lookalikes(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.5  # the chance of an augmentation, say
        self.dropout = True
        self.dropout_p = 3.0
        self.drop_prob = None
        self.dropout_prob = float("nan")


def found(module, *arguments):
    return {rate.name: rate.value for rate in dropout_rates(module, *arguments)}


@pytest.mark.parametrize(
    "kind",
    [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, StochasticDepth],
)
def test_every_kind_of_dropout_is_found(kind):
    assert found(nn.Sequential(nn.ReLU(), kind(0.25))) == {"1.p": 0.25}


def test_so_are_drop_path_attention_and_recurrent_layers():
    block = nn.ModuleDict(
        {
            "path": DropPath(),
            "attn": nn.MultiheadAttention(4, 2, dropout=0.1),
            "lstm": nn.LSTM(4, 4, num_layers=2, dropout=0.2),
            "layer": nn.TransformerEncoderLayer(4, 2, dropout=0.5),
        }
    )
    assert found(block) == {
        "path.drop_prob": 0.3,
        "attn.dropout": 0.1,
        "lstm.dropout": 0.2,
        "layer.self_attn.dropout": 0.5,
        "layer.dropout.p": 0.5,
        "layer.dropout1.p": 0.5,
        "layer.dropout2.p": 0.5,
    }


def test_numbers_that_modules_hand_to_functions_are_found_in_a_gpt():
    rates = found(GPT(vocab_size=8, n_layer=1, n_head=1, d_model=4, context=4, dropout=0.15))
    assert rates == {"dropout": 0.15, "blocks.0.attn.dropout": 0.15, "blocks.0.mlp.dropout": 0.15}


def test_what_only_looks_like_a_rate_is_left_alone():
    assert found(nn.Sequential(Lookalikes(), nn.PairwiseDistance(p=1.0))) == {}


def test_attributes_can_be_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layerdrop = 0.1

    module = nn.Sequential(Own(), nn.Dropout(0.2))
    assert found(module) == {"1.p": 0.2}
    assert found(module, ["layerdrop"]) == {"0.layerdrop": 0.1}


def test_a_module_that_is_there_twice_is_named_once_and_a_whole_number_is_a_rate():
    shared = nn.Dropout(0)
    assert found(nn.Sequential(shared, shared)) == {"0.p": 0.0}


def test_a_compiled_module_keeps_its_names():
    module = nn.Sequential(nn.Sequential(nn.Dropout(0.2)))
    module[0] = torch.compile(module[0], backend="eager")
    assert found(module) == {"0.0.p": 0.2}
    next(dropout_rates(module)).set(0.1)
    assert found(module) == {"0.0.p": 0.1}
