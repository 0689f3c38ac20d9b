"""How a server is set up."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server listens, whom it answers, and its limits. Times in seconds."""

    host: str = "127.0.0.1"
    port: int = 1234
    api_keys: tuple[str, ...] = ()  # none: no authentication
    cors_origins: tuple[str, ...] = ()  # "*" allows any
    allowed_hosts: tuple[str, ...] = ()  # names beside loopback and `host`; "*" allows any
    drain_timeout: float = 30.0
    max_body_bytes: int = 50 * 2**20
    body_timeout: float = 60.0  # between two pieces of a request body; the whole of it may take ten times that
    keep_alive: float = 10.0  # silence on a stream before a comment is sent
    unread_timeout: float = 120.0  # how long a client may leave a stream unread before its request is aborted
