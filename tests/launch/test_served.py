"""A run is served to this machine alone, and nothing that is asked for changes anything."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from steadygrad.core.lines import line_of
from steadygrad.core.record import Site
from steadygrad.core.steps import Row
from steadygrad.core.store import create
from steadygrad.launch.served import Pages, address, serve, server
from steadygrad.replay.captured import CannotLook
from tests.browser import found, started

SITES = [Site("AdamW", "step"), Site("fc.weight", "weight", 0, shape=(2, 2))]


def row_of(step: int) -> Row:
    read = {"loss": [1.0 / (1 + step)], "norm": [0.1], "grad": [0.1]}
    return Row(step, step / 10, {name: np.float32(one) for name, one in read.items()})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = create(tmp_path / "run", "a", pytest.fail)
    writer.meta({}, SITES)
    for step in range(30):
        writer.add(row_of(step))
    writer.close()
    return writer.path


@pytest.fixture
def served(run: Path) -> Iterator[ThreadingHTTPServer]:
    with server(Pages(run), 0) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def path_of(one: ThreadingHTTPServer) -> str:
    return re.sub(r"^http://[^/]*", "", address(one))


def ask(
    one: ThreadingHTTPServer, path: str, method: str = "GET", host: str = ""
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*one.server_address[:2], timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_stands_behind_a_path_that_nobody_can_guess(served: ThreadingHTTPServer) -> None:
    status, page = ask(served, path_of(served))
    assert status == 200
    assert "connect-src 'self'" in page
    assert len(path_of(served)) > 20
    for path in ("/", "/news", "/wrong/", path_of(served) + "../etc/passwd"):
        status, text = ask(served, path)
        assert status == 404
        assert path_of(served).strip("/") not in text


def test_it_listens_on_this_machine_alone(served: ThreadingHTTPServer) -> None:
    assert served.server_address[0] == "127.0.0.1"
    assert ask(served, path_of(served), host="evil.example:80")[0] == 404
    assert ask(served, path_of(served), host="localhost:80")[0] == 200


def test_no_request_writes(served: ThreadingHTTPServer, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ask(served, path_of(served))
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(served, path_of(served), method)[0] == 501
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_port_that_is_taken_is_said_in_a_sentence(served: ThreadingHTTPServer, run: Path) -> None:
    port = served.server_address[1]
    with pytest.raises(CannotLook, match=rf"expected port {port} .* give another with --port"):
        server(Pages(run), port)
    with pytest.raises(CannotLook, match="expected port 99999"):
        server(Pages(run), 99999)


def test_a_run_that_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotLook, match="expected a run directory, got"):
        serve(tmp_path, 0, pytest.fail)


def test_a_run_that_was_removed_is_gone(served: ThreadingHTTPServer, run: Path) -> None:
    shutil.rmtree(run)
    assert ask(served, path_of(served))[0] == 410


def test_a_change_is_told_of_as_it_comes(served: ThreadingHTTPServer, run: Path) -> None:
    connection = http.client.HTTPConnection(*served.server_address[:2], timeout=20)
    connection.request("GET", path_of(served) + "news")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    with (run / "steps.jsonl").open("a") as file:
        file.write(line_of(row_of(30)))
    assert answer.readline() == b"event: changed\n"
    connection.close()


def test_a_page_is_not_drawn_again_before_it_is_due(run: Path) -> None:
    pages = Pages(run)
    first = pages.page()
    with (run / "steps.jsonl").open("a") as file:
        file.write(line_of(row_of(30)))
    assert pages.page() is first  # within two seconds


@pytest.mark.skipif(found() is None, reason="no Chromium found: install one to test the live page")
def test_a_reader_sees_the_run_go_on_and_keeps_what_was_opened(
    served: ThreadingHTTPServer, run: Path, tmp_path: Path
) -> None:
    with started(found() or "", tmp_path / "home") as browser:
        browser.size(1100)
        browser.open(address(served))
        browser.run("document.querySelector('#unseen details, details').open = true")
        browser.run("document.querySelector('[data-course] .chart').focus()")
        with (run / "steps.jsonl").open("a") as file:
            file.writelines(line_of(row_of(step)) for step in range(30, 60))
        read = "document.querySelector('[data-course] .reading b').textContent"
        browser.until(f"{read} === 'step 59'")
        assert browser.run("document.querySelector('#unseen details, details').open")
        assert browser.run("document.activeElement.getAttribute('aria-label')") == "chart: loss"
        assert browser.console == []
        assert all(one.startswith(address(served)) for one in browser.requests)


def test_an_interrupt_ends_the_command(run: Path) -> None:
    words = [sys.executable, "-m", "steadygrad", "serve", str(run), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/\n", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 5
