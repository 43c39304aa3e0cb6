"""The model that a server serves: its engine, its names, and a fingerprint of everything that its output depends on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd import __version__
from ssd.engine import Engine
from ssd.server.async_engine import AsyncEngine
from ssd.server.errors import ApiError, api_error
from ssd.server.options import ServerOptions


class Served:
    """The engine behind the server, and what clients call it."""

    def __init__(self, engine: AsyncEngine, options: ServerOptions) -> None:
        self.engine = engine
        self._plain: AsyncEngine | None = None
        self._making = asyncio.Lock()
        self.options = options
        target = engine.engine.options.target
        self.name = options.served_model_name or (Path(target).name if Path(target).exists() else target)
        self.created = int(time.time())

    async def plain(self) -> AsyncEngine:
        """An engine over the same weights that decodes token by token, one request at a time; made when first asked for."""
        if self.engine.engine.mode == "ar":
            return self.engine
        async with self._making:
            if self._plain is None:
                engine = self.engine.engine
                options = replace(engine.options.autoregressive(), max_batch=1)
                self._plain = self.engine.beside(await asyncio.to_thread(Engine.of, engine.target, None, options))
        return self._plain

    async def close(self) -> None:
        """End all requests, and close the engines."""
        await self.engine.close()
        if self._plain is not None:
            await self._plain.close()

    @property
    def fingerprint(self) -> str:
        """The same for two servers whose version, models, formats and speculation are the same."""
        engine = self.engine.engine
        options, speculation = engine.options, engine.options.speculation_options
        parts: list[Any] = [
            __version__,
            options.target,
            options.draft,
            engine.mode,
            str(engine.target_model.dtype),
            options.weights,
        ]
        parts += [list(speculation.tree or ()) or speculation.lookahead, speculation.saguaro_c, speculation.top_f]
        return f"fp_{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"

    @property
    def spec_tokens(self) -> int:
        """The most draft tokens that a round accepts; 0 where nothing is drafted."""
        engine = self.engine.engine
        speculation = engine.options.speculation_options
        return 0 if engine.mode == "ar" else len(speculation.tree or ()) or speculation.lookahead

    @property
    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        limits = {"max_model_len": self.engine.engine.max_context}
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "ssd", **limits}

    def check(self, model: str | None) -> None:
        """Raise ApiError for any other model."""
        if model not in (None, self.name):
            raise ApiError(
                404, f"there is no model of this name here; use {self.name!r}.", param="model", code="model_not_found"
            )

    def text(self, ids: list[int]) -> str:
        """The text of token ids. Raises ApiError for a model without a tokenizer."""
        tokenizer = self.engine.engine.tokenizer
        if tokenizer is None:
            raise ApiError(400, "the model has no tokenizer, so it has no text; work with token ids.")
        return tokenizer.decode(ids)

    def error(self, error: Exception, token_limit: str = "max_tokens") -> ApiError:
        """An error as the client sees it: in its words, without the target's path."""
        return api_error(error, {repr(self.engine.engine.options.target): repr(self.name), "max_new_tokens": token_limit})
