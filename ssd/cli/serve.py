"""`ssd serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

from dataclasses import replace

from ssd.cli import options as o
from ssd.cli.console import say
from ssd.options import EngineOptions
from ssd.server.options import ServerOptions


@o.takes()
def serve(
    model: o.Target = None,
    *,
    options: EngineOptions,
    server: ServerOptions,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does, until SIGTERM or Ctrl-C; accepted requests are finished first."""
    options = replace(options, target=o.target_of(model, options) or options.target)
    with o.server_extra("ssd serve"):
        from ssd.server import run
    run.api_key(server)  # refused before the models are loaded
    with run.listen(server) as bound, o.loaded_engine(f"Loading {options.target}", options) as engine:
        run.log_to_stderr()
        host, port = bound.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        ready = run.Server(engine, server, lambda: say(f"serving {options.target} at {address}; Ctrl-C ends it."))
        ready.run(sockets=[bound])
    say("the server has ended.")
