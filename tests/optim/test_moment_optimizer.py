# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.functional.tensor_norms import local
from lightning_stable.optim.moment_optimizer import MomentOptimizer, surely_finite


class Momentum(MomentOptimizer):
    """w <- w - lr m,  m <- beta m + g: the least that uses everything."""

    _moments = ("exp_avg",)

    def __init__(self, params, lr=0.1, beta=0.5, moment_dtype="float32", maximize=False):
        super().__init__(params, {"lr": lr, "beta": beta, "moment_dtype": moment_dtype, "maximize": maximize})

    def _update(self, parameter, gradient, moments, member, group):
        moments[0].mul_(group["beta"]).add_(gradient)
        parameter.sub_(moments[0], alpha=float(group["lr"]))


def parameter(*values, dtype=torch.float32):
    made = torch.nn.Parameter(torch.zeros(len(values), dtype=dtype))
    made.grad = torch.tensor(values, dtype=dtype)
    return made


def test_parameters_without_a_gradient_have_no_state():
    with_gradient, without = parameter(1.0), torch.nn.Parameter(torch.zeros(1))
    optimizer = Momentum([with_gradient, without])
    optimizer.step()
    assert list(optimizer.state) == [with_gradient]
    assert optimizer.state[with_gradient]["step"] == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_entries_whose_gradient_is_not_finite_are_left_out(bad):
    weight = parameter(1.0, bad, 2.0)
    optimizer = Momentum([weight])
    optimizer.step()
    assert weight.tolist() == pytest.approx([-0.1, 0.0, -0.2])
    assert optimizer.state[weight]["exp_avg"].tolist() == [1.0, 0.0, 2.0]


def test_an_entry_of_bfloat16_that_is_left_out_keeps_its_bits():
    weight = parameter(1.0, torch.nan, dtype=torch.bfloat16)
    weight.data.fill_(0.3)
    Momentum([weight]).step()
    assert weight[1] == torch.tensor(0.3, dtype=torch.bfloat16)


def test_a_gradient_too_large_to_be_squared_is_left_out_like_infinity():
    weight = parameter(1.0, 1e30)
    Momentum([weight]).step()
    assert weight[1] == 0
    assert surely_finite(torch.full((100,), 1e19))  # whose sum of squares overflows
    assert not surely_finite(torch.tensor([1e30]))
    assert not surely_finite(torch.tensor([1.0, -torch.inf]))


def test_a_step_that_the_scaler_has_found_infinities_in_is_skipped():
    weight = parameter(1.0)
    optimizer = Momentum([weight])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert weight.item() == 0
    assert not optimizer.state
    assert optimizer.param_groups[0]["steps_taken"] == 0


def test_the_scale_of_gradients_is_taken_off():
    weight = parameter(4.0)
    optimizer = Momentum([weight])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.zeros(())
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1)
    assert weight.grad.item() == 4.0


def test_maximize_goes_up():
    weight = parameter(1.0)
    Momentum([weight], maximize=True).step()
    assert weight.item() == pytest.approx(0.1)


def test_moments_of_lower_precision_are_kept_in_float32_unless_asked():
    kept, asked = parameter(1.0, dtype=torch.bfloat16), parameter(1.0, dtype=torch.bfloat16)
    optimizer = Momentum([{"params": kept}, {"params": asked, "moment_dtype": "parameter"}])
    optimizer.step()
    other = Momentum(
        [{"params": parameter(0.0, dtype=torch.bfloat16)}, {"params": parameter(0.0, dtype=torch.bfloat16)}]
    )
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        assert [state["exp_avg"].dtype for state in each.state.values()] == [torch.float32, torch.bfloat16]
    assert other.param_groups[1]["moment_dtype"] == "parameter"


def test_a_state_of_another_optimizer_can_be_loaded_as_far_as_it_goes():
    weight = parameter(1.0)
    adam = torch.optim.Adam([weight])
    adam.step()
    optimizer = Momentum([weight])
    optimizer.load_state_dict(adam.state_dict())
    optimizer.step()
    assert optimizer.param_groups[0]["steps_taken"] == 1
    assert optimizer.state[weight]["step"] == 2


def test_hooks_are_called():
    optimizer, called = Momentum([parameter(1.0)]), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.step()
    assert called == ["before", "after"]


def test_a_step_cannot_be_captured_into_a_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="`Momentum` counts steps on the host: a CUDA graph cannot capture it"):
        Momentum([parameter(1.0)]).step()


def test_a_tensor_that_is_not_sharded_is_its_own_local_part():
    weight = parameter(1.0)
    assert local(weight) is weight


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], r"`Momentum\(params=...\)` must hold at least one parameter, got none"),
        ([torch.zeros(1, dtype=torch.complex64)], r"`Momentum\(params=...\)` must be real floating-point tensors"),
        ([torch.zeros(1, dtype=torch.int64)], r"must be real floating-point tensors, got one of torch.int64"),
    ],
)
def test_parameters_that_cannot_be_trained_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        Momentum(params)


@pytest.mark.parametrize("params", [torch.nn.Linear(1, 1), None])
def test_what_holds_no_parameters_is_refused(params):
    with pytest.raises(
        TypeError, match=r"`Momentum\(params=...\)` must be parameters .* such as `model.parameters\(\)`"
    ):
        Momentum(params)


def test_sparse_gradients_are_refused_with_a_remedy():
    table = torch.nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    optimizer = Momentum(table.parameters())
    with pytest.raises(
        ValueError, match=r"parameter 0, of shape \(3, 2\), is sparse. Use `nn.Embedding\(sparse=False\)`"
    ):
        optimizer.step()
    assert optimizer.param_groups[0]["steps_taken"] == 0


def test_an_unknown_moment_dtype_is_refused():
    with pytest.raises(
        ValueError, match=r'`Momentum\(moment_dtype=...\)` must be "float32" or "parameter", got \'half\''
    ):
        Momentum([parameter(1.0)], moment_dtype="half")
