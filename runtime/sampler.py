"""From the logits of a step to its tokens: what each request asked for, kept by slot.

A slot's parameters are written once when a request takes it. The tensors of a step are made anew only when its rows
change, so a steady batch of decodes pays for the draw alone.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirocco.kernels.sampling import SamplingTensors, apply_logit_bias, apply_penalties, sample, token_logprobs
from sirocco.runtime.plan import Admission
from sirocco.runtime.request import TokenLogprob
from sirocco.runtime.transfer import HostCopy, to_device

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens of R rows on the device, with log probabilities where any row asked for them."""

    token_ids: Tensor  # [R] int64
    logprobs: tuple[Tensor, Tensor, Tensor] | None = None  # [R], [R, n], [R, n]
    num_top: tuple[int, ...] = ()  # alternatives each row asked for; -1: no log probability at all

    def copy_to_host(self) -> "SampledCopy":
        """Queue the copy; nothing waits."""
        return SampledCopy(HostCopy((self.token_ids, *(self.logprobs or ()))), self.num_top)


@dataclass(frozen=True, slots=True)
class SampledCopy:
    """Tokens on their way to the host."""

    copy: HostCopy
    num_top: tuple[int, ...]

    def wait(self) -> tuple[list[int], list[TokenLogprob | None] | None]:
        """Plain values; waits for the step that drew them."""
        token_ids, *logprobs = (tensor.tolist() for tensor in self.copy.wait())
        if not logprobs:
            return token_ids, None
        chosen, top_ids, top = logprobs
        rows = zip(token_ids, self.num_top, chosen, top_ids, top, strict=True)
        return token_ids, [None if n < 0 else _logprob(id, p, ids[:n], ps[:n]) for id, n, p, ids, ps in rows]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The step's rows as tensors; everything but `params.position` stays while the same requests are sampled."""

    params: SamplingTensors
    penalised: Tensor | None  # [P] rows
    penalised_slots: Tensor | None  # [P]
    penalties: tuple[Tensor, Tensor, Tensor] | None  # repetition, presence, frequency [P]
    bias: tuple[Tensor, Tensor, Tensor] | None  # rows, token ids, values [N]
    num_top: tuple[int, ...]


class Sampler:
    """Sampling state of `max_num_seqs` slots over a vocabulary of `vocab_size`."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        n = max_num_seqs
        self._temperature = np.ones(n, np.float32)
        self._top_k = np.zeros(n, np.int32)
        self._top_p = np.ones(n, np.float32)
        self._min_p = np.zeros(n, np.float32)
        self._seed = np.zeros(n, np.int64)
        self._penalties = np.zeros((3, n), np.float32)  # repetition, presence, frequency
        self._penalised = np.zeros(n, bool)
        self._bias: list[dict[int, float] | None] = [None] * n
        self._num_top = np.full(n, -1, np.int64)
        self._counts: Tensor | None = None  # [max_num_seqs, V] int32, made when the first penalty is asked for
        self._prompt: Tensor | None = None  # [max_num_seqs, V] bool
        self._key: bytes = b""
        self._rows: _Rows | None = None

    def admit(self, admission: Admission) -> None:
        """A request takes a slot; tokens it generated before a preemption count as generated."""
        slot, s = admission.slot, admission.sampling
        self._temperature[slot] = s.temperature
        self._top_k[slot] = min(max(s.top_k, 0), self.vocab_size)
        self._top_p[slot] = s.top_p
        self._min_p[slot] = s.min_p
        self._seed[slot] = admission.seed
        self._bias[slot] = s.logit_bias or None
        self._num_top[slot] = -1 if s.logprobs is None else s.logprobs
        self._penalties[:, slot] = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        self._penalised[slot] = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1.0, 0.0, 0.0)
        if self._penalised[slot]:
            self._count_tokens(admission)
        self._rows = None

    def sample(self, logits: Tensor, slots: IntArray, positions: IntArray) -> Sampled:
        """Draw a token for each row of logits [R, V] (float32, may be changed); `positions` are those of the new
        tokens.
        """
        rows = self._rows_for(slots)
        raw = logits
        if rows.num_top and (rows.penalised is not None or rows.bias is not None):
            raw = logits.clone()  # log probabilities are the model's own
        if rows.penalised is not None:
            self._penalise(logits, rows)
        if rows.bias is not None:
            apply_logit_bias(logits, *rows.bias)
        position = self._tensor(positions)
        token_ids = sample(logits, replace(rows.params, position=position))
        if rows.penalised is not None:
            self._count_sampled(token_ids, rows)
        if not rows.num_top:
            return Sampled(token_ids)
        return Sampled(token_ids, token_logprobs(raw, token_ids.clamp_min(0), max(max(rows.num_top), 0)), rows.num_top)

    def _rows_for(self, slots: IntArray) -> _Rows:
        key = slots.tobytes()
        if self._rows is None or key != self._key:
            self._rows, self._key = self._make_rows(slots), key
        return self._rows

    def _make_rows(self, slots: IntArray) -> _Rows:
        temperature, top_k = self._temperature[slots], self._top_k[slots]
        top_p, min_p = self._top_p[slots], self._min_p[slots]
        greedy = temperature == 0
        params = SamplingTensors(
            temperature=self._tensor(temperature),
            top_k=self._tensor(top_k),
            top_p=self._tensor(top_p),
            min_p=self._tensor(min_p),
            seed=self._tensor(self._seed[slots]),
            position=self._tensor(slots),  # replaced in every step
            greedy=bool(greedy.all()),
            any_greedy=bool(greedy.any()),
            uses_top_k=bool((top_k > 0).any()),
            uses_top_p=bool((top_p < 1).any()),
            uses_min_p=bool((min_p > 0).any()),
            max_top_k=int(top_k.max(initial=0)),
        )
        penalised = np.flatnonzero(self._penalised[slots])
        num_top = self._num_top[slots]
        return _Rows(
            params,
            self._tensor(penalised) if penalised.size else None,
            self._tensor(slots[penalised]) if penalised.size else None,
            self._penalty_tensors(slots[penalised]) if penalised.size else None,
            self._bias_tensors(slots),
            tuple(num_top.tolist()) if (num_top >= 0).any() else (),
        )

    def _penalty_tensors(self, slots: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        repetition, presence, frequency = (self._tensor(values[slots]) for values in self._penalties)
        return repetition, presence, frequency

    def _bias_tensors(self, slots: IntArray) -> tuple[Tensor, Tensor, Tensor] | None:
        entries = [
            (row, token_id, value)
            for row, slot in enumerate(slots.tolist())
            for token_id, value in (self._bias[slot] or {}).items()
        ]
        if not entries:
            return None
        rows, token_ids, values = zip(*entries, strict=True)
        return (
            self._tensor(np.array(rows)),
            self._tensor(np.array(token_ids)),
            self._tensor(np.array(values, np.float32)),
        )

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return to_device(values, self.device)

    def _count_tokens(self, admission: Admission) -> None:
        if self._counts is None or self._prompt is None:
            shape = (len(self._temperature), self.vocab_size)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self.device)
            self._prompt = torch.zeros(shape, dtype=torch.bool, device=self.device)
        ids = self._tensor(np.array(admission.token_ids, np.int64))
        prompt, output = ids[: admission.num_prompt_tokens], ids[admission.num_prompt_tokens :]
        self._prompt[admission.slot].zero_().index_fill_(0, prompt, True)
        counts = self._counts[admission.slot].zero_()
        counts.index_add_(0, output, torch.ones_like(output, dtype=counts.dtype))  # bincount would wait for the device

    def _penalise(self, logits: Tensor, rows: _Rows) -> None:
        assert self._counts is not None and self._prompt is not None
        assert rows.penalised is not None and rows.penalised_slots is not None and rows.penalties is not None
        chosen = logits.index_select(0, rows.penalised)
        counts = self._counts.index_select(0, rows.penalised_slots)
        prompt = self._prompt.index_select(0, rows.penalised_slots)
        apply_penalties(chosen, counts, prompt, *rows.penalties)
        logits.index_copy_(0, rows.penalised, chosen)

    def _count_sampled(self, token_ids: Tensor, rows: _Rows) -> None:
        assert self._counts is not None and rows.penalised is not None and rows.penalised_slots is not None
        drawn = token_ids.index_select(0, rows.penalised).clamp_min(0)
        self._counts[rows.penalised_slots, drawn] += 1


def _logprob(token_id: int, logprob: float, top_ids: list[int], top: list[float]) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, dict(zip(top_ids, top, strict=True)))
