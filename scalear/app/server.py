"""A page for one person on this machine: a web server of the standard library around a `Playground`.

It listens on the loopback address alone. A browser asks it for a few fixed things by name, never for a path; and it
answers pages of other sites with a refusal, which a browser could otherwise make ask here as well.
"""

import json
import os
import re
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from itertools import chain
from typing import Any

from scalear.app.playground import Playground

HOST = "127.0.0.1"
MAX_BYTES = 10 << 20
"""Of what a browser sends, such as a picture."""
_OURS = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    # The browser loads nothing from elsewhere, and shows the page in no frame of another one.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Serves the page; `playground` has to be set before.

    Args:
        port: To listen on; 0 for any that is free.

    Attributes:
        playground: Who answers.

    Raises:
        ValueError: The port cannot be had.
    """

    playground: Playground
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers have one port

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ValueError(
                f"--port {port} cannot be had ({error.strerror}): give another one, or 0 for any that is free"
            ) from None

    def serve(self) -> None:
        """Answer until Ctrl-C; what is being made then is made to its end, so that nothing computes when this ends."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            self.playground.rest()

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30  # seconds that a browser may be silent

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/model":
            self._send_json(HTTPStatus.OK, self.server.playground.describe() | {"max_bytes": MAX_BYTES})
        elif self.path in _PAGE:
            name, kind = _PAGE[self.path]
            self._send(HTTPStatus.OK, kind, [files("scalear.app").joinpath("page", name).read_bytes()])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_ours() or (content := self._content()) is None:
            return
        try:
            if self.path == "/sample":
                self._stream(self.server.playground.sample(_parse(content)))
            elif self.path == "/complete":
                self._send_json(HTTPStatus.OK, self.server.playground.complete(_parse(content)))
            elif self.path == "/fit":
                self._send_json(HTTPStatus.OK, self.server.playground.fit(content))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        except Exception as error:
            fault = not isinstance(error, ValueError)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR if fault else HTTPStatus.BAD_REQUEST, _told(error))

    def log_message(self, *args: object) -> None:
        """Say nothing of every request."""

    def _is_ours(self) -> bool:
        """Whether this is asked for by the page itself, or typed; says so if not."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if _OURS.fullmatch(host) and origin in (None, f"http://{host}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "only the page of this server may ask it")
        return False

    def _content(self) -> bytes | None:
        """What was sent; None, and a refusal, if that is too much."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "what is sent must say its length")
        elif int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BYTES >> 20} MB can be sent")
        else:
            return self.rfile.read(int(length))
        return None

    def _stream(self, steps: Generator[dict[str, Any]]) -> None:
        """A line of JSON for each step, as soon as it is there; what cannot be done is known before the first."""
        with closing(steps):  # also where the browser has gone before the last
            first = next(steps)
            self._send(HTTPStatus.OK, "application/x-ndjson", _lines(chain([first], steps)))

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", [json.dumps(content).encode()])

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send_json(status, {"error": why})

    def _send(self, status: HTTPStatus, kind: str, parts: Iterable[bytes]) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind}).items():
            self.send_header(name, value)
        try:
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
        except (ConnectionError, TimeoutError):
            pass  # the browser has gone, or asks for something else by now


def _lines(steps: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Steps as text; an error between them is the last line."""
    try:
        for step in steps:
            yield json.dumps(step).encode() + b"\n"
    except Exception as error:
        yield json.dumps({"error": _told(error)}).encode() + b"\n"


def _told(error: Exception) -> str:
    """What the page says of an error; where that is none of its user, the console says where it comes from."""
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise ValueError("what is asked must be a JSON object")
    return asked
