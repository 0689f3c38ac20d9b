"""What the template worker and its parent say to each other, in frames behind a length.

Requests are JSON, whose integers have no bounds; replies are msgpack.
"""

from typing import Any

import msgspec

HEADER = 4  # bytes of a frame's length, big-endian
MAX_OUTPUT = 16 * 1024 * 1024  # bytes of a rendered text
MAX_REPLY = MAX_OUTPUT + 64  # bytes of a reply's payload
EXIT_MEMORY = 77  # the worker's exit code when it runs out of its address space
READY = b"\0\0\0\0"  # an empty frame, sent once when the worker can render


class RenderRequest(msgspec.Struct, array_like=True):
    """Render a template's text with variables."""

    template: str
    variables: dict[str, Any]


class Rendered(msgspec.Struct, array_like=True, tag="ok"):
    """The text."""

    text: str


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """One sentence for the caller."""

    message: str


def frame(payload: bytes) -> bytes:
    """`payload` behind its length."""
    return len(payload).to_bytes(HEADER, "big") + payload
