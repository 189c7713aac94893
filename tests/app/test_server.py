"""Who may ask the page's server, for what, and what it answers."""

import http.client
import json
import re
import socket
from http.client import HTTPResponse
from importlib.resources import files

import pytest
import torch
from app_fixtures import served
from test_editing import make_editor

from scalear.app.playground import Playground
from scalear.app.server import MAX_BYTES, PageServer

ONE = {"labels": [0], "seeds": [0]}


@pytest.fixture(scope="module")
def server():
    with served(Playground(make_editor().model, precision="32-true")) as running:
        yield running


def ask(server: PageServer, method: str, path: str, content: object = None, **headers: str) -> HTTPResponse:
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    body = content if isinstance(content, bytes | None) else json.dumps(content)
    connection.request(method, path, body, headers)
    return connection.getresponse()


def error(reply: HTTPResponse) -> str:
    return json.loads(reply.read())["error"]


def test_it_listens_on_this_machine_alone_and_a_port_is_for_one(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ValueError, match=rf"--port {server.server_port} cannot be had \(Address .*: give another one"):
        PageServer(server.server_port)


def test_the_page_needs_nothing_from_elsewhere(server):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        reply = ask(server, "GET", path)
        assert reply.status == 200 and reply.headers["Content-Type"].startswith(kind)
        assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
        assert not re.search(r"https?:|@import|url\(|['\"]//", reply.read().decode())


def test_the_page_asks_for_what_there_is(server):
    """Each thing that its script names by an id is in it."""
    html, script = (files("scalear.app").joinpath("page", name).read_text() for name in ("page.html", "page.js"))
    assert set(re.findall(r'at\("([\w-]+)"\)', script)) <= set(re.findall(r'id="([\w-]+)"', html))


@pytest.mark.parametrize("path", ["/../server.py", "/page/page.html", "/%2e%2e/server.py", "//etc/passwd", "/?a=/etc"])
def test_no_path_leads_to_a_file(server, path):
    for method, content in (("GET", None), ("POST", ONE)):
        reply = ask(server, method, path, content)
        assert reply.status == 404 and error(reply) == "there is no such page"


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),  # of a tunnel
        ({"Host": "localhost:1234", "Origin": "http://localhost:1234"}, 200),
        ({"Host": "elsewhere.org"}, 403),  # a name that was made to lead here
        ({"Host": "localhost.elsewhere.org"}, 403),
        ({"Origin": "http://elsewhere.org"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(server, headers, status):
    assert ask(server, "GET", "/model", **headers).status == status
    assert ask(server, "POST", "/sample", ONE, **headers).status == status


def test_pictures_come_scale_by_scale(server):
    reply = ask(server, "POST", "/sample", ONE)
    steps = [json.loads(line) for line in reply]
    assert reply.status == 200 and len(steps) == 4 and all(len(step["pictures"]) == 1 for step in steps)
    *_, last = server.playground.sample(ONE)
    assert steps[-1]["pictures"] == last["pictures"]


def test_what_is_sent_is_limited(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.putrequest("POST", "/fit")
    connection.putheader("Content-Length", str(MAX_BYTES + 1))
    connection.endheaders()
    reply = connection.getresponse()  # before anything was sent
    assert reply.status == 413 and error(reply) == "at most 10 MB can be sent"
    for length in ("", "-1", "1e3"):
        assert ask(server, "POST", "/fit", **{"Content-Length": length}).status == 411


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'"text"'])
def test_what_is_no_json_object_is_refused(server, content):
    reply = ask(server, "POST", "/sample", content)
    assert reply.status == 400 and error(reply) == "what is asked must be a JSON object"


def test_mistakes_are_told_and_faults_of_code_are_also_on_the_console(server, monkeypatch, capsys):
    reply = ask(server, "POST", "/sample", ONE | {"labels": [9]})
    assert reply.status == 400 and error(reply) == "a class must be a whole number from 0 to 3, got 9"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(server.playground, "fit", lambda content: {}["nothing"])
    reply = ask(server, "POST", "/fit", b"")
    assert reply.status == 500 and error(reply) == "KeyError: 'nothing'"
    assert "Traceback" in capsys.readouterr().err


def test_an_error_between_scales_is_the_last_line(server, monkeypatch):
    image = server.playground.model.image

    def broken(scales, schedule):
        return image(scales, schedule) * (torch.nan if len(scales) == 3 else 1)

    monkeypatch.setattr(server.playground.model, "image", broken)
    *steps, last = (json.loads(line) for line in ask(server, "POST", "/sample", ONE))
    assert len(steps) == 2 and "NaN" in last["error"]


def test_a_browser_that_goes_away_leaves_the_model_to_others(server):
    content = json.dumps({"labels": [0] * 36, "seeds": [0] * 36}).encode()
    with socket.create_connection(server.server_address) as gone:
        request = f"POST /sample HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        gone.sendall(request.encode() + content)
    assert len(list(ask(server, "POST", "/sample", ONE))) == 4
