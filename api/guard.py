"""Who may talk to the server: Host, Origin (a web page must not drive a server on localhost), and API keys."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from sirocco.api.errors import Header, HttpError
from sirocco.api.http import Exchange
from sirocco.api.options import ServerOptions

WILDCARD_BINDS = frozenset({"0.0.0.0", "::"})
OPEN_PATHS = frozenset({"/health"})  # need no key, and no Host: HTTP/1.0 probes send none
_CORS_METHODS = b"GET, POST, PUT, DELETE"


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


class Guard:
    """Checks built once from the options. Pages are let in only from the server's own origin or `cors_origins`."""

    def __init__(self, options: ServerOptions) -> None:
        self._hosts = frozenset(map(_named, (*options.allowed_hosts, options.host)))
        self._any_host = "*" in self._hosts
        # A rebound name is never an address, so where ours are not known from the option they need no list.
        self._any_address = options.host in WILDCARD_BINDS or not (_address(options.host) or is_loopback(options.host))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.cors_origins)
        self._keys = tuple(key.encode() for key in options.api_keys)

    def admit(self, exchange: Exchange) -> bool:
        """Add the CORS headers the answer needs. Returns True for a preflight, which needs no key and no route.

        Raises `HttpError` 403 for an unknown Host or a foreign Origin, 401 for a missing or wrong key.
        """
        host = exchange.headers.get(b"host", b"").decode("latin-1").lower()
        nameless_probe = not host and exchange.path in OPEN_PATHS
        if not nameless_probe and not self._knows_host(_without_port(host)):
            raise HttpError(403, "This Host is not served here; see --allowed-host.", "host_not_allowed")
        origin = exchange.headers.get(b"origin")
        if origin is not None:
            exchange.reply_headers += self._cors(origin, host)
            if exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.headers:
                return True
        if self._keys and exchange.path not in OPEN_PATHS and not self._has_key(exchange.headers):
            raise HttpError(401, "A valid API key is required.", "invalid_api_key", [(b"www-authenticate", b"Bearer")])
        return False

    def _knows_host(self, host: str) -> bool:
        if self._any_host or host in self._hosts or is_loopback(host):
            return True
        return self._any_address and _address(host) is not None

    def _cors(self, origin: bytes, host: str) -> list[Header]:
        text = origin.decode("latin-1").lower()
        if text in self._origins or "*" in self._origins:
            return [
                (b"access-control-allow-origin", origin),
                (b"vary", b"origin"),
                (b"access-control-expose-headers", b"x-request-id"),
            ]
        if _authority(text) == host:
            return []
        raise HttpError(403, "Requests from this Origin are not allowed; see --cors-origin.", "origin_not_allowed")

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        matches = [hmac.compare_digest(key, given) for key in self._keys]  # a list: all are compared
        return any(matches)


def preflight_headers(exchange: Exchange) -> tuple[Header, ...]:
    """What an admitted page may send: whatever headers it asks for, since clients add their own."""
    return (
        (b"access-control-allow-methods", _CORS_METHODS),
        (b"access-control-allow-headers", exchange.headers.get(b"access-control-request-headers", b"")),
        (b"access-control-max-age", b"600"),
    )


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None  # "null" has none
    except ValueError:
        return None


def _named(option: str) -> str:
    """The host that an option names, be it with a port or in brackets as in a URL."""
    host = option.lower()
    return host if _address(host) is not None else _without_port(host)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
