"""A server's life: a socket, an engine, uvicorn over both, and a graceful end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.server.access import MAX_HEADER_BYTES
from ssd.server.app import make_app
from ssd.server.async_engine import AsyncEngine
from ssd.server.connection import PatientConnection
from ssd.server.metrics import Figures
from ssd.server.options import KEY_VARIABLE, ServerOptions
from ssd.server.served import Served


def api_key(options: ServerOptions) -> str | None:
    """The key from the option, its file, or the environment. Raises SsdError for one that cannot be read or used."""
    key, source = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    if options.api_key is not None:
        key, source = options.api_key, "--api-key"
    if options.api_key_file is not None:
        source = "--api-key-file"
        try:
            key = Path(options.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SsdError(
                f"the API key cannot be read from {options.api_key_file} ({one_line(error)}); give a text file."
            ) from None
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise SsdError(f"the key of {source} is empty, or has other characters than visible ASCII; choose another key.")
    return key


def listen(options: ServerOptions) -> socket.socket:
    """A bound socket, so that a wrong address is refused before models are loaded. Raises SsdError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sends at once only where the protocol is named
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise SsdError(
            f"the server cannot listen at {options.host}:{options.port} ({reason}); choose another --host or --port."
        ) from None
    return bound


class Server(uvicorn.Server):
    """uvicorn's server, which ends by itself after SIGTERM or Ctrl-C, once the accepted requests have finished.

    ready: called when it takes requests.
    """

    def __init__(self, engine: Engine, options: ServerOptions, ready: Callable[[], None] = lambda: None) -> None:
        figures = Figures()
        self.engine = AsyncEngine(engine, max_waiting=options.max_waiting, max_unread=options.max_unread, on_end=figures.count)
        figures.watch(self.engine)
        self._ready = ready
        self._served = Served(self.engine, options)
        config = uvicorn.Config(
            make_app(self._served, figures, api_key(options)),
            http=PatientConnection,
            ws="none",
            proxy_headers=False,  # a client could write into the log by them
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=options.drain_seconds,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._served.close()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals end the server, and the process goes on; uvicorn's own version would raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def log_to_stderr() -> None:
    """The access log and warnings, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("ssd.access", logging.INFO), ("ssd.server", logging.WARNING), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
