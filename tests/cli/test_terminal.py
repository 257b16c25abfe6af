"""Progress for people at a terminal, and for logs."""

import io

from rich.console import Console

from dsee.cli.terminal import Terminal


def shown(terminal, tty):
    stream = io.StringIO()
    terminal.errors = Console(file=stream, force_terminal=tty, width=100)
    with terminal.stage("tune", 40) as bar:
        bar.note("validation accuracy 81.2")
        for _ in range(40):
            bar.advance()
    return stream.getvalue()


def test_a_log_gets_ten_lines_and_no_control_characters():
    lines = shown(Terminal(), tty=False).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("tune     4/40  0:0")
    assert lines[-1].startswith("tune     40/40")
    assert lines[-1].endswith("validation accuracy 81.2")
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_that_ends_full():
    text = shown(Terminal(), tty=True)
    assert "40/40" in text
    assert "validation accuracy 81.2" in text


def test_a_stage_of_no_steps_is_no_division_by_zero():
    terminal = Terminal()
    terminal.errors = Console(file=io.StringIO(), force_terminal=False)
    with terminal.stage("empty", 0) as bar:
        bar.advance()
