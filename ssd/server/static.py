"""The chat page's files (ssd/server/page), with headers that let the page load nothing but them."""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class ChatPage:
    """The files of the page by name, read once."""

    def __init__(self) -> None:
        folder = resources.files("ssd.server") / "page"
        self._files = {
            file.name: (file.read_bytes(), TYPES[ending])
            for file in folder.iterdir()
            if (ending := file.name.rpartition(".")[2]) in TYPES
        }

    def response(self, name: str) -> Response | None:
        """One file; None for any other name."""
        if name not in self._files:
            return None
        content, media_type = self._files[name]
        return Response(content, media_type=media_type, headers=HEADERS)
