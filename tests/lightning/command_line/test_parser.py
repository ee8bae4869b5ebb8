# SPDX-License-Identifier: Apache-2.0
"""What a user reads when a class or jsonargparse refuses an argument."""

import pytest
from jsonargparse import ArgumentError

from lightning_stable._lightning.command_line.parser import ShortErrorParser, readable
from lightning_stable.guard import SpikeGuard


def parse(*arguments, **parser_arguments):
    parser = ShortErrorParser(prog="it", **parser_arguments)
    parser.add_class_arguments(SpikeGuard, "guard")
    parser.add_argument("--lr", type=float)
    return parser.parse_args(arguments)


def test_a_wrong_type_is_one_line_with_the_option_and_the_value(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--guard.snapshot_every", "often")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "it: --guard.snapshot_every must be int, got 'often'.\n"


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("--nonsense", "3")
    assert capsys.readouterr().err == "it: unrecognized arguments: --nonsense 3\n"


def test_debugging_shows_the_whole_error(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ArgumentError):
        parse("--lr", "x")


def test_a_parser_that_must_not_exit_raises():
    with pytest.raises(ArgumentError):
        parse("--lr", "x", exit_on_error=False)


def test_the_words_of_our_classes_come_alone():
    message = """Does not validate against any of the Union subtypes
Subtypes: [list[Callback], <class 'Callback'>, <class 'NoneType'>]
Errors:
  - Does not validate against any of the Union subtypes
    Errors:
      - `MedianDeviation(window=...)` must be at least 2, got -3.
      - Expected a <class 'NoneType'>
    Given value type: <class 'dict'>
    Given value: {'loss': Namespace(window=-3)}
  - Not a valid subclass of Callback
    Subclass types expect one of:
    - a class path (str)
    - a dict with class_path entry
  - Expected a <class 'NoneType'>
Given value: [1]"""
    assert readable(message) == "`MedianDeviation(window=...)` must be at least 2, got -3."


def test_an_unknown_class_is_said_once_with_where_to_look():
    message = """Parser key "trainer.callbacks":

  - Expected a path but Guard either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Expected a dot import path string: Guard
    - Expected a dot import path string: Guard
    - Expected a <class 'NoneType'>
  Given value: Guard"""
    assert readable(message) == (
        "--trainer.callbacks: there is no class 'Guard'; `lightning-stable techniques` lists those of this package."
    )


@pytest.mark.parametrize("message", ["", "No such file.", "Errors:\n  - Expected a <class 'NoneType'>"])
def test_what_cannot_be_shortened_stays_as_it_is(message):
    assert readable(message) == message
