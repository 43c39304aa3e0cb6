"""The options of a server: the only list of them. It loads without torch, so that `ssd --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssd.errors import SsdError
from ssd.fields import check, documented, option

KEY_VARIABLE = "SSD_API_KEY"  # in the environment of a server, and of its clients

SERVER, ACCESS = "Server", "Access"  # headings of the command line's help


@documented
@dataclass(frozen=True)
class ServerOptions:
    """The settings of `ssd serve`.

    Raises SsdError for a value outside its limits.
    """

    host: str = option(
        "127.0.0.1", help="Address to listen at; 127.0.0.1 serves this machine alone, 0.0.0.0 every network.", panel=SERVER
    )
    port: int = option(8000, help="Port to listen at; 0 takes a free one.", panel=SERVER, limits=(0, 65535))
    served_model_name: str | None = option(
        None,
        help="Name of the model in requests and answers; the target's, or the last part of its path, unless given.",
        panel=SERVER,
    )
    max_waiting: int = option(
        256, help="Largest number of requests that wait for a slot; further ones are refused.", panel=SERVER, limits=(1, 10**6)
    )
    max_unread: int = option(
        2048,
        help="Largest number of tokens that a stream holds for a slow reader before it ends.",
        panel=SERVER,
        limits=(1, 2**31 - 1),
    )
    deadline: float | None = option(
        None,
        help="Longest time of a request in seconds, waiting included; unlimited unless given.",
        panel=SERVER,
        limits=(0.001, 1e6),
    )
    max_body_mb: int = option(4, help="Largest body of a request, in MB.", panel=SERVER, limits=(1, 1024))
    per_request_spec_decode_metrics: Literal["none", "summary", "detailed"] = option(
        "none",
        help="Acceptance of a request's draft tokens in its response, as metrics.speculative_decoding; 'detailed' has every round.",
        panel=SERVER,
    )
    drain_seconds: int = option(
        300, help="Longest time for accepted requests to finish after SIGTERM.", panel=SERVER, limits=(0, 10**6)
    )
    api_key: str | None = option(
        None,
        help="Key that requests must carry; better given by SSD_API_KEY or --api-key-file, as a process list shows flags.",
        panel=ACCESS,
    )
    api_key_file: str | None = option(None, help="File with the key that requests must carry.", panel=ACCESS, metavar="FILE")
    cors_origin: tuple[str, ...] = option((), help="Web origins whose pages may call this server.", panel=ACCESS)

    def __post_init__(self) -> None:
        check(self)
        if self.api_key is not None and self.api_key_file is not None:
            raise SsdError("there are an api_key and an api_key_file; give one of the two.")
