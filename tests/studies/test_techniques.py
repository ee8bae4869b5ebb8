# SPDX-License-Identifier: Apache-2.0
import pytest

import lightning_stable
from lightning_stable.studies.techniques import BEGIN, END, list_techniques, main, techniques_table, write_table


def test_every_public_name_of_the_package_is_listed():
    names = [technique.name for technique in list_techniques()]
    assert set(lightning_stable.__all__) - {"__version__"} <= set(names)
    assert len(names) == len(set(names))


def test_every_technique_says_what_it_is_in_one_line():
    for technique in list_techniques():
        assert technique.line, technique
        assert "\n" not in technique.line
    assert all(row.count("|") - row.count("\\|") == 4 for row in techniques_table().splitlines())


def test_the_table_is_printed(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == techniques_table() + "\n"


def test_the_table_is_written_between_the_markers_once(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--write", str(readme)]) == 0
    assert readme.read_text() == f"before\n{BEGIN}\n{techniques_table()}\n{END}\nafter\n"
    assert main(["--write", str(readme)]) == 0
    assert capsys.readouterr().out == f"{readme}: the table is rewritten.\n{readme}: the table is current.\n"


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END} {BEGIN}"])
def test_a_file_without_markers_is_left_alone(tmp_path, text, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="needs the two lines"):
        write_table(readme)
    assert main(["--write", str(readme)]) == 2
    assert "needs the two lines" in capsys.readouterr().err
    assert readme.read_text() == text
