# SPDX-License-Identifier: Apache-2.0
import pytest
from matplotlib.figure import Figure

from lightning_stable.studies.pictures import save_picture, style_axes, try_to_draw


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(self, path, **_):
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    save_picture(Figure(), tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save_picture(Figure(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == whole


def test_axes_have_no_box():
    axes = Figure().subplots()
    style_axes(axes)
    assert [name for name, spine in axes.spines.items() if spine.get_visible()] == ["left", "bottom"]


def test_it_is_said_where_the_picture_is_what_is_missing_and_what_went_wrong(tmp_path, capsys):
    def needs(name):
        def draw():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return draw

    def refuse():
        raise PermissionError(13, "Permission denied")

    out = tmp_path / "a.png"
    assert try_to_draw("lightning-stable detect", out, lambda: None) == 0
    assert capsys.readouterr().out == f"Picture: {out}\n"
    assert try_to_draw("lightning-stable detect", out, needs("matplotlib.figure")) == 0
    assert capsys.readouterr().err == "No picture: it needs matplotlib. pip install 'lightning-stable[recipes]'\n"
    assert try_to_draw("lightning-stable detect", out, refuse) == 2
    assert capsys.readouterr().err == (
        f"lightning-stable detect: cannot write {out}: Permission denied. Choose another place with `--out`.\n"
    )
    with pytest.raises(ModuleNotFoundError, match="mine"):
        try_to_draw("lightning-stable detect", out, needs("mine"))
