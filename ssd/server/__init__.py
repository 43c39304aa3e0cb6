"""Serving: `AsyncEngine` for coroutines, and an HTTP server with OpenAI's interface over it (`ssd serve`).

AsyncEngine needs no further package. The HTTP server needs those of the extra "server".
"""
