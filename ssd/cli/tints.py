"""Text in the terminal, each token tinted by where it came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

# Origins differ by more than their colour, for terminals without colours and for eyes that do not see them.
STYLES = {"target": "", "draft": "italic yellow", "cache": "underline green"}
LEGEND = {"target": "the target's own", "draft": "drafted", "cache": "prepared in the speculation cache"}

# A terminal obeys control characters, and a model may write any. Tabs and line breaks are text.
_INERT = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def inert(text: str) -> str:
    """The text with a sign in place of each control character."""
    return text.translate(_INERT)


class Tints:
    """Writes one text, piece by piece. The text of a token may come later than its origin."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._origins: deque[tuple[str, int]] = deque()  # of the tokens whose text is to come, with their characters

    def write(self, text: str, tokens: Iterable[tuple[str, int]]) -> None:
        """text: what is new of the text. tokens: those that are new, each with its origin and its number of characters."""
        self._origins += tokens
        while text:
            origin, count = self._origins.popleft() if self._origins else ("target", len(text))
            if count > len(text):
                self._origins.appendleft((origin, count - len(text)))
            self._print(text[:count], STYLES[origin])
            text = text[count:]

    def end(self) -> None:
        """End the last line."""
        self._print("\n", "")

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(inert(text), style, end=""), end="", soft_wrap=True)


def legend(origins: Iterable[str]) -> Text:
    """The meaning of the tints of these origins."""
    return Text(" · ", "dim").join(Text(LEGEND[origin], STYLES[origin]) for origin in origins)
