"""A terminal that runs `ssd`, imported as `cli.terminal`: a pty, and a screen that obeys its escape sequences."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte

MAIN = "import sys; from ssd.cli.main import main; sys.exit(main(sys.argv[1:]))"
ENTER, ALT_ENTER, UP = "\r", "\x1b\r", "\x1b[A"


def joined(text: str) -> str:
    """Text without its line breaks, which a terminal puts anywhere."""
    return text.replace("\n", "")


class Terminal:
    """A running command and what its user sees."""

    def __init__(self, child: pexpect.spawn, rows: int, columns: int) -> None:
        self._child = child
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self.screen.write_process_input = child.send  # answers to its questions, such as where the cursor is
        self._stream = pyte.Stream(self.screen)
        self.written = ""  # by the command, escape sequences too

    @property
    def text(self) -> str:
        """Everything on the screen, and above it, without the spaces at the ends of lines."""
        columns = range(self.screen.columns)
        above = ["".join(line[column].data for column in columns) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in (*above, *self.screen.display))

    def wait_for(self, wanted: str | Callable[[], bool], seconds: float = 60) -> None:
        """Read until this text, broken into lines anywhere, or what this function looks for, is on the screen."""
        seen = wanted if callable(wanted) else lambda: wanted in joined(self.text)
        end = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < end, f"{wanted!r} did not appear in\n{self.text}"
            try:
                data = self._child.read_nonblocking(4096, timeout=0.2)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert seen(), f"{wanted!r} did not appear before the end of\n{self.text}"
                return
            self.written += data
            self._stream.feed(data)

    def wait_for_prompt(self) -> None:
        self.wait_for(lambda: self.text.rstrip().endswith("\n>") or self.text.rstrip() == ">")

    def send(self, keys: str) -> None:
        self._child.send(keys)

    def enter(self, line: str) -> None:
        """Type a line and send it."""
        self.send(line + ENTER)

    def paste(self, text: str) -> None:
        """Paste, as a terminal does that knows bracketed paste."""
        self.send(f"\x1b[200~{text}\x1b[201~")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.sendintr()

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self._child.setwinsize(rows, columns)

    def end(self, keys: str = "\x04") -> int:
        """Press Ctrl-D, or other keys, and wait for the command's exit status."""
        self.send(keys)
        self._child.expect(pexpect.EOF, timeout=60)
        self._child.close()
        assert self._child.exitstatus is not None, self._child.signalstatus
        return int(self._child.exitstatus)


@contextmanager
def terminal(*arguments: object, home: Path, rows: int = 40, columns: int = 100, **variables: str) -> Iterator[Terminal]:
    """Run `ssd` with these arguments and environment variables in a terminal. home: the folder of its history."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "XDG_STATE_HOME": str(home), **variables}
    command = ["-P", "-c", MAIN, *map(str, arguments)]
    child = pexpect.spawn(sys.executable, command, dimensions=(rows, columns), encoding="utf-8", env=environment, timeout=60)
    try:
        yield Terminal(child, rows, columns)
    finally:
        child.close(force=True)
