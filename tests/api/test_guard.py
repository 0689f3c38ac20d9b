"""Host, Origin and API keys."""

import pytest

from sirocco.api.guard import is_loopback
from sirocco.api.options import ServerOptions

from .harness import CHAT, HELLO, ask

BODY = {"messages": HELLO}


def status(options=None, path="/v1/models", payload=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(path, payload, options=options, headers=named).status


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1234", "127.0.0.1", "127.9.9.9:80", "[::1]:1234", "LOCALHOST:5", "a.localhost"]
)
def test_loopback_hosts(host):
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:1234", "10.0.0.1", "localhost.evil.example", "", "[::2]"]
)
def test_other_hosts_are_refused(host):
    assert status(host=host) == 403


def test_bound_and_allowed_hosts():
    options = ServerOptions(host="10.0.0.5", allowed_hosts=("Box.example",))
    assert status(options, host="10.0.0.5:1234") == 200
    assert status(options, host="box.example") == 200
    assert status(options, host="10.0.0.6") == 403
    assert status(ServerOptions(allowed_hosts=("*",)), host="any.example") == 200


@pytest.mark.parametrize(
    "allowed", ["box.example:8080", "Box.Example", "[2001:db8::1]", "[2001:db8::1]:80", "2001:db8::1"]
)
def test_allowed_hosts_may_be_written_as_in_a_url(allowed):
    host = "[2001:db8::1]:1234" if "2001" in allowed else "box.example:1234"
    assert status(ServerOptions(allowed_hosts=(allowed,)), host=host) == 200
    assert status(ServerOptions(allowed_hosts=(allowed,)), host="other.example") == 403


def test_wildcard_bind_takes_addresses_but_no_names():
    options = ServerOptions(host="0.0.0.0")
    assert status(options, host="192.168.1.7:1234") == 200
    assert status(options, host="rebound.example") == 403


def test_a_server_bound_by_a_name_is_asked_for_at_its_address():
    options = ServerOptions(host="mybox")
    assert status(options, host="mybox:1234") == status(options, host="192.168.1.7:1234") == 200
    assert status(options, host="rebound.example") == 403
    assert status(ServerOptions(host="localhost"), host="192.168.1.7:1234") == 403


def test_a_probe_without_a_host_may_ask_for_health():
    assert status(path="/health", host="") == 200
    assert status(path="/ready", host="") == 403
    assert status(path="/health", host="evil.example") == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://[", "file://"])
def test_foreign_origin(origin):
    assert status(origin=origin) == 403
    assert status(path=CHAT, payload=BODY, origin=origin) == 403
    assert status(path="/health", origin=origin) == 403


def test_own_origin():
    assert status(host="localhost:1234", origin="http://localhost:1234") == 200


def test_cors_origin_and_preflight():
    options = ServerOptions(cors_origins=("https://app.example/",), api_keys=("k",))
    headers = {"origin": "https://app.example"}
    asked = "authorization,content-type,x-stainless-lang"  # the official client for JavaScript sends more of its own
    preflight = {**headers, "access-control-request-method": "POST", "access-control-request-headers": asked}
    reply = ask(CHAT, method="OPTIONS", options=options, headers=preflight)
    assert reply.status == 204 and b"POST" in reply.headers[b"access-control-allow-methods"]
    assert reply.headers[b"access-control-allow-origin"] == b"https://app.example"
    assert reply.headers[b"access-control-allow-headers"] == asked.encode()
    foreign = {**preflight, "origin": "https://b.example"}
    assert ask(CHAT, method="OPTIONS", options=options, headers=foreign).status == 403
    reply = ask(CHAT, BODY, options=options, headers={**headers, "authorization": "Bearer k"})
    assert reply.status == 200 and reply.headers[b"access-control-allow-origin"] == b"https://app.example"
    refused = ask(CHAT, BODY, options=options, headers=headers)  # a page must be able to read the error
    assert refused.status == 401 and b"access-control-allow-origin" in refused.headers
    assert ask(CHAT, BODY, options=options, headers={"origin": "https://b.example"}).status == 403
    assert (
        ask("/health", options=ServerOptions(cors_origins=("*",)), headers={"origin": "https://b.example"}).status
        == 200
    )


def test_no_cors_headers_by_default():
    reply = ask("/v1/models", headers={"host": "localhost", "origin": "http://localhost"})
    assert reply.status == 200 and b"access-control-allow-origin" not in reply.headers


def test_api_keys():
    options = ServerOptions(api_keys=("one", "two"))
    assert status(options, authorization="Bearer one") == 200
    assert status(options, authorization="bearer two") == 200
    assert status(options, x_api_key="two") == 200
    for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "Bearer"}, {"authorization": "one"}):
        assert status(options, **headers) == 401
    assert status(options, path="/metrics") == 401
    assert status(options, path="/nothing") == 401
    assert status(options, path="/health") == 200


def test_wrong_key_body():
    reply = ask("/v1/models", options=ServerOptions(api_keys=("k",)))
    assert reply.error["code"] == "invalid_api_key" and reply.headers[b"www-authenticate"] == b"Bearer"


def test_is_loopback():
    assert is_loopback("::1") and is_loopback("127.0.0.2") and not is_loopback("0.0.0.0") and not is_loopback("x")
