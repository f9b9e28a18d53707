"""The command `serve`: the page of a run over HTTP, for this machine alone, drawn as it goes on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from steadygrad._watch import report_of
from steadygrad.core.segments import CURRENT
from steadygrad.core.stored import EVENTS, META, expected
from steadygrad.core.tail import Tail
from steadygrad.launch.page import page
from steadygrad.replay.captured import CannotLook

HOST = "127.0.0.1"
SECONDS = 2.0  # between two drawings at least
SHARE = 20.0  # times as long as a drawing takes, no other is made: 5 % of a core
ALIVE = 15.0  # seconds after which a reader that has gone is noticed
LOOK = 0.5  # seconds between two looks at the files
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Stamp = tuple[tuple[float, int], ...]


def serve(run: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page of a run until an interrupt; `tell` is told the address.

    Raises CannotLook where there is no run, and where the port cannot be had.
    """
    try:
        pages = Pages(expected(run))
    except ValueError as error:
        raise CannotLook(str(error)) from None
    with server(pages, port) as one:
        tell(address(one))
        one.serve_forever(poll_interval=LOOK)


class Pages:
    """The pages of a run that may be going on: one is drawn when the files have changed."""

    def __init__(self, run: Path) -> None:
        """Follow a run; raises ValueError where there is none."""
        self._run = run
        self._tail = Tail(run)
        self._lock = Lock()
        self._drawn: tuple[Stamp, str] | None = None
        self._due = 0.0

    def stamp(self) -> Stamp:
        """Return what changes whenever the run is written to: times and sizes of its files."""
        paths = [self._run / name for name in (META, CURRENT, EVENTS)]
        known = [path.stat() for path in paths if path.is_file()]
        return tuple((one.st_mtime, one.st_size) for one in known)

    @property
    def shown(self) -> Stamp:
        """The stamp of the last page."""
        return self._drawn[0] if self._drawn is not None else ()

    def page(self) -> str:
        """Return the page of now, or the last one while the next is not due."""
        with self._lock:
            stamp = self.stamp()
            if self._drawn is None or (stamp != self._drawn[0] and time.monotonic() >= self._due):
                begun = time.monotonic()
                drawn = page(report_of(self._tail.look()), self._run, live=True)
                taken = time.monotonic() - begun
                self._drawn = stamp, drawn
                self._due = time.monotonic() + max(SECONDS, SHARE * taken)
            return self._drawn[1]

    def has_news(self, since: Stamp) -> bool:
        """Whether the run has changed since, and a new page is due."""
        return time.monotonic() >= self._due and self.stamp() != since


def server(pages: Pages, port: int) -> ThreadingHTTPServer:
    """Return a server for this machine alone, behind a path that nobody can guess."""
    token = secrets.token_urlsafe(16)
    try:
        made = Server((HOST, port), partial(Handler, pages, token))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CannotLook(
            f"expected port {port} of {HOST} to be free, got: {why}; give another with --port, or "
            "0 for any that is free"
        ) from None
    made.token = token
    return made


def address(one: ThreadingHTTPServer) -> str:
    """Return where a server's page is."""
    token = one.token if isinstance(one, Server) else ""
    return f"http://{HOST}:{one.server_address[1]}/{token}/"


class Server(ThreadingHTTPServer):
    """A server whose readers do not keep the command from ending."""

    daemon_threads = True
    allow_reuse_address = False  # a second one must not take a port over
    token = ""


class Handler(BaseHTTPRequestHandler):
    """Answers two questions: the page, and whether there is news. It changes nothing."""

    server_version, sys_version = "steadygrad", ""

    def __init__(self, pages: Pages, token: str, *given: object) -> None:
        """Answer one connection."""
        self._pages = pages
        self._token = token
        super().__init__(*given)  # type: ignore[arg-type]  # as the server hands them over

    def do_GET(self) -> None:
        """Answer with the page, with news, or with nothing."""
        try:
            if not self._is_ours():
                self.send_error(HTTPStatus.NOT_FOUND)
            elif self.path == f"/{self._token}/":
                self._send_page()
            elif self.path == f"/{self._token}/news":
                self._send_news()
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except ConnectionError:  # the reader has gone
            self.close_connection = True
        except OSError:  # the run has
            self.send_error(HTTPStatus.GONE, "The run can no longer be read")

    def _is_ours(self) -> bool:
        """Whether the page was asked for by this machine's name: no other site can be behind it."""
        host = self.headers.get("Host", "")
        return host.rpartition(":")[0] in (HOST, "localhost")

    def _send_page(self) -> None:
        data = self._pages.page().encode()
        self._begin("text/html; charset=utf-8", {"Content-Length": str(len(data))})
        self.wfile.write(data)

    def _send_news(self) -> None:
        """Tell of each change, as server-sent events, until the reader goes."""
        self._begin("text/event-stream", {})
        since, told = self._pages.shown, time.monotonic()
        while True:
            time.sleep(LOOK)
            if self._pages.has_news(since):
                since, told = self._pages.stamp(), time.monotonic()
                self.wfile.write(b"event: changed\ndata:\n\n")
            elif time.monotonic() - told > ALIVE:
                told = time.monotonic()
                self.wfile.write(b": alive\n\n")

    def _begin(self, kind: str, more: dict[str, str]) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, _format: str, *_words: object) -> None:
        """Say nothing of each request."""
