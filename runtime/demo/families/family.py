"""An everyday function as a table entry."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """One everyday function.

    `parameters` reads `name|other:kind`; an optional one ends in `?`, an enum is `name:a/b/c`. In a frame `[…]` is said
    only when the parameter in it is given.
    """

    names: str
    descriptions: str
    parameters: str
    frames: tuple[str, ...]
    result: str = ""  # `key:kind …` of a fitting result; empty: any
    more: tuple[str, ...] = ()  # further frames of training, none of them in any test
