"""Requests for vectors in line: what is computed together, whose turn it is, and what none can do to the others."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sirocco.runtime import embed_core
from sirocco.runtime.embed_core import EmbedCore
from sirocco.runtime.errors import RequestError
from sirocco.runtime.wire import Abort, Embedded, EmbedRequest


class Lengths:
    """An embedder whose vectors are the sequences' lengths. The token 13 breaks it, the token 0 is no token."""

    max_tokens = 10

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.lost = False

    def check_device(self) -> None:
        if self.lost:
            raise RuntimeError("the device is lost")

    def check(self, sequences: Sequence[Sequence[int]], dimensions: int | None = None) -> None:
        if any(0 in sequence for sequence in sequences):
            raise RequestError("no token", "input")

    def embed(self, sequences: Sequence[Sequence[int]], dimensions: int | None = None) -> torch.Tensor:
        self.batches.append([len(sequence) for sequence in sequences])
        if any(13 in sequence for sequence in sequences):
            raise RuntimeError("the device is unhappy")
        return torch.tensor([[float(len(sequence))] * (dimensions or 1) for sequence in sequences])


def core_with(*requests: tuple[int, list[list[int]]], **fields: Any) -> tuple[EmbedCore, Lengths]:
    embedder = Lengths()
    core = EmbedCore(embedder)  # type: ignore[arg-type]
    for id, sequences in requests:
        core.apply(EmbedRequest(id, sequences, **fields))
    return core, embedder


def advance(core: EmbedCore) -> list[Embedded]:
    busy, outputs = core.advance()
    assert busy
    return outputs.embedded


def lengths(embedded: Embedded) -> list[float]:
    return [torch.frombuffer(bytearray(vector), dtype=torch.float32)[0].item() for vector in embedded.vectors]


def test_requests_are_computed_together() -> None:
    core, embedder = core_with((1, [[1] * 3, [1] * 2]), (2, [[1] * 4]))
    found = advance(core)
    assert [(one.id, lengths(one)) for one in found] == [(1, [3, 2]), (2, [4])]
    assert embedder.batches == [[2, 3, 4]] and core.advance() == (False, core.advance()[1])


def test_a_large_request_lets_others_in_between_its_batches() -> None:
    core, embedder = core_with((1, [[1] * 6] * 5), (2, [[1] * 3]))
    assert advance(core) == []
    assert [one.id for one in advance(core)] == [2]
    ids = [one.id for _ in range(3) for one in advance(core)]
    assert ids == [1]
    assert sum(len(batch) for batch in embedder.batches) == 6
    assert core.advance()[0] is False


def test_a_request_that_a_batch_has_no_room_for_is_not_passed_over_again() -> None:
    core, embedder = core_with((0, [[1] * 3]), (1, [[1] * 30]), (2, [[1] * 3]))
    for id in range(3, 6):
        if 1 in [one.id for one in advance(core)]:
            break
        core.apply(EmbedRequest(id, [[1] * 3]))
    assert embedder.batches == [[3], [30]]


def test_no_step_hands_over_more_than_a_frame_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_core, "ANSWER_BYTES", 20)  # of vectors of four bytes
    core, embedder = core_with((1, [[1]] * 3), (2, [[1]] * 3), (3, [[1]] * 2), (4, [[1]] * 2))
    core.apply(EmbedRequest(5, [[1]], 8))
    assert [one.id for one in advance(core)] == [1, 3]
    assert [one.id for one in advance(core)] == [2, 4]
    assert [one.id for one in advance(core)] == [5]
    assert embedder.batches == [[1] * 10, [1]] and core.advance()[0] is False


def test_an_aborted_request_is_not_computed_to_its_end() -> None:
    core, embedder = core_with((1, [[1] * 9] * 100))
    advance(core)
    core.apply(Abort(1))
    assert core.advance()[0] is False and len(embedder.batches) == 1


def test_a_sequence_longer_than_a_batch_is_one() -> None:
    core, embedder = core_with((1, [[1] * 30, [1] * 30]))
    assert advance(core) == [] and [one.id for one in advance(core)] == [1]
    assert embedder.batches == [[30], [30]]


def test_other_dimensions_are_another_batch() -> None:
    core, embedder = core_with((1, [[1]]))
    core.apply(EmbedRequest(2, [[1, 1]], 4))
    assert [one.id for one in advance(core)] == [1]
    (second,) = advance(core)
    assert len(second.vectors[0]) == 16 and embedder.batches == [[1], [2]]


def test_what_cannot_be_computed_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    core, _ = core_with((1, [[1]]), (2, [[13], [1, 1]]), (3, [[1, 1, 1]]), (4, [[0]]))
    found = {one.id: one for one in advance(core)}
    assert lengths(found[1]) == [1] and lengths(found[3]) == [3]
    assert found[2].error == "the engine failed while computing this request" and found[2].vectors == []
    assert found[4].error == "no token" and found[4].param == "input"
    assert core.advance()[0] is False


def test_a_lost_device_ends_the_engine() -> None:
    core, embedder = core_with((1, [[13]]))
    embedder.lost = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        core.advance()
