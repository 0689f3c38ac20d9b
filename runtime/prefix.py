"""Names for the content of full blocks, so that equal prefixes can share them.

A block's name is BLAKE2b-256 over its parent's name and its token ids. The first parent is derived from whatever must
keep contents apart: the caller's salt and the regime of a length-dependent rotary embedding.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 32


def root_digest(salt: str | None, regime: int = 0) -> bytes:
    """The parent of a sequence's first block."""
    return blake2b(f"{regime} {salt or ''}".encode(), digest_size=DIGEST_BYTES, person=b"sirocco.root").digest()


def extend_digests(digests: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int) -> None:
    """Append the names of the full blocks of `token_ids` that `digests` does not hold yet."""
    parent = digests[-1] if digests else root
    for start in range(len(digests) * block_size, len(token_ids) - block_size + 1, block_size):
        content = array("i", token_ids[start : start + block_size]).tobytes()
        parent = blake2b(parent + content, digest_size=DIGEST_BYTES).digest()
        digests.append(parent)
