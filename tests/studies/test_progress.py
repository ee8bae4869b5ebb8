# SPDX-License-Identifier: Apache-2.0
import io

from lightning_stable.studies.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def told(stream, *calls):
    clock = Clock()
    line = ProgressLine(stream, clock)
    for clock.seconds, what, share in calls:
        line(what, share)
    line.clear()
    return stream.getvalue()


def test_what_is_over_soon_says_nothing():
    assert told(Terminal(), (0.5, "a", 0.2), (1.9, "a", 0.9)) == ""
    assert told(io.StringIO(), (9.9, "a", 0.2)) == ""


def test_a_terminal_has_one_line_that_is_written_over_and_cleared():
    text = told(Terminal(), (2.5, "judging", 0.1), (2.6, "judging", 0.15), (2.9, "b", 1.0))
    assert text == "\rjudging:  10 %\rb: 100 %      \r        \r"


def test_on_paper_there_are_lines_far_apart():
    text = told(io.StringIO(), (5.0, "a", 0.1), (11.0, "a", 0.2), (12.0, "a", 0.3), (21.5, "b", 0.4))
    assert text == "a:  20 %\nb:  40 %\n"
