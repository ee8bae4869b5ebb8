# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.transforms.transform import TensorScalars, Transform

CPU = torch.device("cpu")


class Noted(Transform):
    """Writes down whom it meets."""

    def __init__(self):
        self.met = []

    def _transform(self, members):
        self.met.append([member.position for member in members])
        self.clip_rate = torch.ones(())


def parameter(gradient):
    made = torch.nn.Parameter(torch.zeros(2))
    made.grad = gradient
    return made


def test_positions_count_parameters_without_a_gradient_too():
    transform = Noted()
    transform.transform(iter([parameter(None), parameter(torch.ones(2)), parameter(None), parameter(torch.ones(2))]))
    assert transform.met == [[1, 3]]


def test_without_any_gradient_nothing_is_done_and_no_rate_is_left_over():
    transform = Noted()
    transform.transform([parameter(torch.ones(2))])
    transform.transform([parameter(None)])
    assert len(transform.met) == 1
    assert transform.clip_rate is None


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_gradients_are_refused_with_a_remedy(layout):
    table = torch.eye(3, 2) if layout is torch.sparse_coo else torch.eye(3, 2).to_sparse(layout=layout)
    table.grad = torch.eye(3, 2).to_sparse(layout=layout)
    with pytest.raises(
        ValueError, match=r"`Noted.transform\(params=...\)` must have dense .* parameter 1, of shape \(3, 2\)"
    ):
        Noted().transform([parameter(torch.ones(2)), table])


def test_gradients_are_changed_without_a_graph():
    class Doubled(Noted):
        def _transform(self, members):
            for member in members:
                member.gradient.mul_(member.parameter.add(2.0))

    made = parameter(torch.ones(2))
    Doubled().transform([made])
    assert made.grad.tolist() == [2.0, 2.0]
    assert not made.grad.requires_grad


def test_scalars_grow_where_they_are_asked_for():
    scalars = TensorScalars("mean", "step")
    assert scalars.take([3], CPU)["mean"].tolist() == [0.0]
    scalars.put([3], mean=torch.tensor([5.0], dtype=torch.float64))
    scalars.take([0, 1, 5], CPU)
    scalars.put([0, 1, 5], mean=torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert scalars.state_dict()["mean"].tolist() == [1.0, 2.0, 0.0, 5.0, 0.0, 6.0]
    assert scalars.state_dict()["step"].tolist() == [0.0] * 6


def test_what_is_taken_is_a_copy():
    scalars = TensorScalars("mean")
    taken = scalars.take([0, 1], CPU)["mean"]
    scalars.put([0, 1], mean=torch.ones(2, dtype=torch.float64))
    assert taken.tolist() == [0.0, 0.0]


def test_a_state_is_a_copy_on_the_way_out_and_in():
    first, second = TensorScalars("mean"), TensorScalars("mean")
    first.take([0], CPU)
    state = first.state_dict()
    second.load_state_dict(state)
    first.put([0], mean=torch.ones(1, dtype=torch.float64))
    assert state["mean"].tolist() == second.state_dict()["mean"].tolist() == [0.0]
    state["mean"].fill_(7.0)
    assert second.state_dict()["mean"].tolist() == [0.0]
