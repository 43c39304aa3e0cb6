"""`ssd chat`: a conversation in the terminal, each token tinted by where it came from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd.cli import options as o
from ssd.cli.console import say
from ssd.cli.sources import EngineSource, Message, Reply, ServerSource, Source
from ssd.cli.tints import STYLES, Tints, legend
from ssd.errors import SsdError, one_line
from ssd.options import MODELS, EngineOptions, SamplingParams

if TYPE_CHECKING:
    from ssd.decoding.stats import Committed

# Reads the next message. Raises EOFError at the end, and KeyboardInterrupt for a message that is dropped.
Read = Callable[[], Awaitable[str]]


@o.takes(without=("logprobs", "max_batch"))
def chat(
    model: o.Target = None,
    url: Annotated[
        str | None,
        o.option(
            "--url",
            help="Address of a server with OpenAI's interface that answers instead of an engine here; its key is read from $SSD_API_KEY.",
            panel=MODELS,
            metavar="URL",
        ),
    ] = None,
    system: Annotated[str, o.option("--system", help="System prompt.", panel=MODELS)] = "",
    *,
    options: EngineOptions,
    params: SamplingParams,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the chat, and /help lists the commands."""
    target = o.target_of(model, options)
    o.check_text(system, "the system prompt")
    with ExitStack() as stack:
        if url is not None:
            if replace(options, target=EngineOptions.target) != EngineOptions():
                raise o.WrongUsage("--url takes no option of an engine; leave them out, or leave --url out.")
            source: Source = ServerSource(url, target, params)
        else:
            options = replace(options, target=target or options.target, max_batch=1)
            engine = stack.enter_context(o.loaded_engine(f"Loading {options.target}", options))
            source = EngineSource(engine, params)
        asyncio.run(_talk(source, system))


async def _talk(source: Source, system: str) -> None:
    try:
        await source.connect()
        conversation = Conversation(source, system)
        if sys.stdin.isatty() and sys.stdout.isatty():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, conversation.stop)
            say(f"{source.name}, mode {source.mode}. /help lists the commands; Ctrl-D ends the chat.")
            await conversation.run(_prompt())
        else:
            await conversation.run(_lines)
    finally:
        await source.close()


async def _lines() -> str:
    """A message for each line of stdin, where it is no terminal."""
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line


def _prompt() -> Read:
    """A prompt with a history. Enter sends; Alt+Enter or Ctrl-J begins a line; a pasted text may have many lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ssd"
    history: History = InMemoryHistory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat_history").touch(mode=0o600)
        history = FileHistory(folder / "chat_history")
    except OSError as error:
        say(f"the history of this chat is not kept, because {folder} cannot be written ({error.strerror or one_line(error)}).")
    session: PromptSession[str] = PromptSession(
        "> ", multiline=True, prompt_continuation="  ", key_bindings=keys, history=history
    )
    return lambda: session.prompt_async(handle_sigint=False)


class Conversation:
    """The messages so far, and the commands. Answers go to stdout, all else to stderr, or to other consoles."""

    def __init__(self, source: Source, system: str, out: Console | None = None, err: Console | None = None) -> None:
        self._source = source
        self._system = system
        self._messages: list[Message] = []
        self._last: Reply | None = None
        self._running: asyncio.Task[None] | None = None
        self._explained: set[str] = set()  # origins whose tints were explained
        self._out = out or Console(highlight=False)
        self._err = err or Console(stderr=True, highlight=False)
        self._commands: dict[str, tuple[Callable[[str], Awaitable[None]], str, str]] = {
            "help": (self._help, "", "this list"),
            "system": (self._set_system, "[TEXT]", "the system prompt, shown or set; - removes it"),
            "reset": (self._reset, "", "begin a new conversation"),
            "regenerate": (self._regenerate, "", "answer the last message again"),
            "mode": (self._mode, "[MODE]", "the decoding mode, shown or chosen"),
            "stats": (self._stats, "", "the last answer's figures, and its rounds"),
            "save": (self._save, "FILE", "write the conversation to a new file, as JSON"),
            "exit": (self._exit, "", "end the chat"),
        }

    async def run(self, read: Read) -> None:
        """Answer messages until there are no more."""
        while True:
            try:
                text = await read()
                if text.strip():
                    await self.handle(text)
            except EOFError:
                return
            except KeyboardInterrupt:
                say("Ctrl-D ends the chat.")
            except SsdError as error:
                say(str(error))

    async def handle(self, text: str) -> None:
        """Answer a message, or do a command. Raises SsdError, and EOFError for the command that ends the chat."""
        if not text.startswith("/"):
            await self._answer({"role": "user", "content": o.check_text(text.strip(), "the message")})
            return
        name, _, rest = text[1:].strip().partition(" ")
        if name not in self._commands:
            raise SsdError(f"there is no command /{name}; /help lists them, and a message may begin with a space and then /.")
        await self._commands[name][0](rest.strip())

    def stop(self) -> None:
        """Stop the answer that is being written, if any."""
        if self._running is not None:
            self._running.cancel()

    # Answers ----------------------------------------------------------------------------------------------------------------

    async def _answer(self, message: Message) -> None:
        """Answer a message. A message without any answer is forgotten, so that it can be sent again."""
        self._last = answer = Reply()
        self._messages.append(message)
        self._running = asyncio.ensure_future(self._write(answer))
        try:
            await self._running
        except asyncio.CancelledError:
            if not self._running.cancelled():
                raise  # the chat ends
            say("stopped.")
        finally:
            self._running = None
            if answer.text:
                self._messages.append({"role": "assistant", "content": answer.text})
            else:
                self._messages.pop()
        if answer.finish_reason == "length":
            say("the answer was cut at the limit of its tokens; --max-new-tokens raises it.")

    async def _write(self, answer: Reply) -> None:
        tints, begun = Tints(self._out), time.perf_counter()
        try:
            async with aclosing(self._source.answer(self._conversation())) as pieces:
                async for piece in pieces:
                    answer.add(piece, time.perf_counter() - begun)
                    origins = piece.committed.origins if piece.committed is not None else []
                    tints.write(piece.text, zip(origins, piece.characters, strict=True))
        finally:
            tints.end()
        self._explain(answer)

    def _conversation(self) -> list[Message]:
        """The messages so far, after the system prompt."""
        return [*([{"role": "system", "content": self._system}] if self._system else []), *self._messages]

    def _explain(self, answer: Reply) -> None:
        """Say what the tints mean when they are first seen, and what the answer cost."""
        origins = {origin for round in answer.rounds for origin in round.origins}
        if origins - self._explained - {"target"}:
            self._explained |= origins
            self._note(legend(origin for origin in STYLES if origin in origins))
        self._note(Text(in_words(answer), "dim"))

    def _note(self, text: Text | str) -> None:
        """Only a terminal needs the lines broken."""
        self._err.print(text, soft_wrap=not self._err.is_terminal)

    # Commands ---------------------------------------------------------------------------------------------------------------

    async def _help(self, rest: str) -> None:
        table = Table(show_header=False, box=None)
        for name, (_, takes, does) in self._commands.items():
            table.add_row(Text(f"/{name} {takes}"), does)
        table.add_row("Enter", "send; Alt+Enter or Ctrl-J begins a line")
        table.add_row("Ctrl-C", "stop the answer; Ctrl-D ends the chat")
        self._err.print(table)

    async def _set_system(self, rest: str) -> None:
        if rest:
            self._system = "" if rest == "-" else rest
        say(f"the system prompt is {self._system!r}." if self._system else "there is no system prompt.")

    async def _reset(self, rest: str) -> None:
        self._messages, self._last = [], None
        say("a new conversation.")

    async def _regenerate(self, rest: str) -> None:
        if not self._messages:
            raise SsdError("there is no message to answer again; write one.")
        self._messages.pop()
        await self._answer(self._messages.pop())

    async def _mode(self, rest: str) -> None:
        if rest:
            self._source.choose(rest)
        say(f"the mode is {self._source.mode}.")

    async def _stats(self, rest: str) -> None:
        if self._last is None:
            raise SsdError("there is no answer yet; write a message.")
        self._note(in_words(self._last))
        if self._last.first_s is not None:
            self._note(f"{self._last.first_s:.2f} s to the first token")
        if any(round.proposed for round in self._last.rounds):
            self._note(strip(self._last.rounds[1:]))

    async def _save(self, rest: str) -> None:
        if not rest:
            raise SsdError("give the name of a new file: /save FILE.")
        document = {"model": self._source.name, "messages": self._conversation()}
        try:
            with Path(rest).expanduser().open("x", encoding="utf-8") as file:
                json.dump(document, file, ensure_ascii=False, indent=1)
        except FileExistsError:
            raise SsdError(f"{rest} exists already; give the name of a new file.") from None
        except OSError as error:
            raise SsdError(f"{rest} cannot be written ({error.strerror or one_line(error)}); give another name.") from None
        say(f"the conversation is in {rest}.")

    async def _exit(self, rest: str) -> None:
        raise EOFError


def in_words(answer: Reply) -> str:
    """The figures of an answer, as far as they are known."""
    parts = [f"{answer.tokens} tokens"]
    for value, form in (
        (answer.tokens_per_s, "{:.1f} tokens/s"),
        (answer.tokens_per_round, "{:.2f} tokens a round"),
        (answer.acceptance_rate, "{:.0%} of the draft accepted"),
        (answer.hit_rate, "{:.0%} cache hits"),
    ):
        if value is not None:
            parts.append(form.format(value))
    return " · ".join(parts)


def strip(rounds: Sequence[Committed]) -> Text:
    """A number for each round: how many proposed tokens it accepted. Those in brackets were drafted after a miss."""
    line = Text("accepted, round by round:")
    for round in rounds:
        style = STYLES["cache"] if round.hit else STYLES["draft"] if round.proposed else ""
        line.append(" ").append(f"({round.accepted})" if round.hit is False else str(round.accepted), style)
    if any(round.hit is False for round in rounds):
        line.append("; (n): drafted after a miss", "dim")
    return line
