"""The page of a live listener: its files, and the headers that it is sent with."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "web"

# The page asks nobody but its own server, and no other page may show it in a frame. Sockets may be
# those of a replica with a port of its own, which 'self' would not cover.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; "
    "img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; "
    "style-src 'self'; script-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Cache-Control": "no-cache",
}
