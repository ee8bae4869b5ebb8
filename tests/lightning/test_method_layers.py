# SPDX-License-Identifier: Apache-2.0
import inspect
from contextlib import ExitStack

import pytest

from lightning_stable._lightning.method_layers import layer_over


class Counter:
    def count(self, number, by=1):
        return number + by


def doubled(count, number, by=1):
    return 2 * count(number, by)


def squared(count, number, by=1):
    return count(number, by) ** 2


@pytest.mark.parametrize("order", ["first in, first out", "last in, first out"])
def test_layers_go_in_any_order(order):
    counter, one, other = Counter(), ExitStack(), ExitStack()
    layer_over(one, counter, "count", doubled)
    layer_over(other, counter, "count", squared)
    assert counter.count(2) == (2 * 3) ** 2
    first, second = (one, other) if order == "first in, first out" else (other, one)
    first.close()
    assert counter.count(2) == (9 if first is one else 6)
    second.close()
    assert vars(counter) == {}
    assert counter.count(2) == 3


def test_what_was_on_the_instance_comes_back():
    counter, undo = Counter(), ExitStack()
    counter.count = own = lambda number: 10 * number
    layer_over(undo, counter, "count", lambda count, number: count(number) + 1)
    assert counter.count(2) == 21
    undo.close()
    assert vars(counter) == {"count": own}


def test_the_names_of_the_arguments_can_still_be_seen():
    counter = Counter()
    with ExitStack() as undo:
        layer_over(undo, counter, "count", doubled)
        layer_over(undo, counter, "count", squared)
        assert list(inspect.signature(counter.count).parameters) == ["number", "by"]
        assert inspect.getfullargspec(counter.count.__wrapped__).args == ["self", "number", "by"]
