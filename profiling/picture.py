"""The README's picture: an answer of `ssd chat`, each token tinted by where it came from.

    python -P profiling/picture.py          # writes docs/chat.svg

It shows a real answer of SmolLM2-135M and of the draft in the package, on this machine, with the figures of that answer.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console

from ssd import Engine, SamplingParams
from ssd.cli.chat import Conversation
from ssd.cli.sources import EngineSource

TARGET, PROMPT, TOKENS, COLUMNS = "smollm2-135m", "Write a Python function that counts the vowels in a word.", 160, 98
PICTURE = Path(__file__).parents[1] / "docs" / "chat.svg"

# rich's own form, without its web font and its window.
FORM = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="An answer of ssd chat">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


async def talk(engine: Engine, console: Console) -> None:
    source = EngineSource(engine, SamplingParams(max_new_tokens=TOKENS))
    await Conversation(source, "", out=unseen(), err=unseen()).handle(PROMPT)  # the first answer also warms the machine up
    conversation = Conversation(source, "", out=console, err=console)
    console.print(f"[bold]$ ssd chat {TARGET} --mode {engine.mode}[/]")
    for line in (PROMPT, "/stats"):
        console.print(f"[bold]> {line}[/]")
        await conversation.handle(line)
    await source.close()


def unseen() -> Console:
    return Console(file=io.StringIO())


def main() -> None:
    console = Console(
        record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, color_system="truecolor", highlight=False
    )
    with Engine(TARGET, mode="ssd", max_batch=1) as engine:
        asyncio.run(talk(engine, console))
    picture = console.export_svg(code_format=FORM, unique_id="ssd")
    ElementTree.fromstring(picture)  # it is well formed
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {PICTURE.name}")


if __name__ == "__main__":
    main()
