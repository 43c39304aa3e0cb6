"""A real server on loopback, on a thread of the test's process. Imported as `server.live`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from ssd import Engine
from ssd.server.options import ServerOptions
from ssd.server.run import Server, listen

MODEL = "tiny-chat"  # the name of the tests' target


class Live:
    """A server that takes requests."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.engine = server.engine
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, prompt: Any = "one", **body: Any) -> httpx.Response:
        """A completion, greedy unless told otherwise."""
        return self.post("/v1/completions", **{"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0} | body)

    def chat(self, content: Any = "one", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.post(
            "/v1/chat/completions", **{"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0} | body
        )

    def figures(self) -> dict[str, float]:
        """The samples of /metrics by name and labels."""
        lines = self.http.get("/metrics").raise_for_status().text.splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}


@contextmanager
def live(engine: Engine, send_buffer: int | None = None, **options: Any) -> Iterator[Live]:
    """Serve the engine until the block's end, which closes it. send_buffer: size of the kernel's buffers for answers."""
    given, ready = ServerOptions(port=0, **options), threading.Event()
    bound = listen(given)
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = Server(engine, given, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert ready.wait(20)
        served = Live(server, bound.getsockname()[1])
        with served.http:
            yield served
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
