# SPDX-License-Identifier: Apache-2.0
import pytest
from matplotlib.image import imread

from lightning_stable.callbacks.population.lineage import Copy, Lineage, Turn
from lightning_stable.callbacks.population.lineage_picture import draw
from lightning_stable.callbacks.population.settings import Settings


def settings(*names, monitor="val_loss"):
    ranges = {name: [1e-3, 1.0] for name in names}
    return Settings(2, 10, ranges, {}, [], monitor, "min", 0.2, 0)


def lineage(scores, names):
    values = [{name: 0.01 * (1 + member) for name in names} for member in range(2)]
    turns = [
        Turn(generation, member, 10 * generation, 10 * generation + 10, 0, values[member], score)
        for generation, pair in enumerate(scores)
        for member, score in enumerate(pair)
    ]
    return Lineage(turns, [Copy(0, 1, 0, values[1])])


@pytest.mark.parametrize(
    "scores",
    [
        [(0.5, 0.2)],
        [(0.5, 0.2), (0.4, 0.1)],
        [(1e-8, 1e8), (None, 0.1)],
        [(None, 0.3), (None, None)],
        [(-1.0, 0.0), (0.0, 0.0)],
    ],
    ids=str,
)
@pytest.mark.parametrize("names", [("lr",), ("lr", "weight_decay", "module.$p_0^")], ids=len)
def test_a_picture_is_there_whole_and_nothing_else(tmp_path, scores, names):
    draw(lineage(scores, names), 1, settings(*names, monitor="$loss_{"), tmp_path / "pbt.png")
    assert [path.name for path in tmp_path.iterdir()] == ["pbt.png"]
    picture = imread(tmp_path / "pbt.png")
    assert picture.shape[1] == 1000
    assert picture.std() > 0.01


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        draw(lineage([(0.5, 0.2)], ["lr"]), 0, settings("lr"), tmp_path / "nowhere" / "pbt.png")
