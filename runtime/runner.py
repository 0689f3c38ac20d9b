"""Carries out plans on a device: plan → tensors of the step → forward → tokens.

Each running request has a slot. Its token ids live in a device buffer where sampled tokens are written too, so that the
next step can read them before the host has. Lengths, tables and slot mappings are computed on the host from the plan's
ints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.sampling import token_logprobs
from sirocco.runtime.models.cache import Cache
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.plan import Admission, Plan, StepResult
from sirocco.runtime.request import TokenLogprob
from sirocco.runtime.sampler import Sampled, Sampler

LOGITS_ROWS = (
    128  # prompt positions whose logits are computed at a time when log probabilities of the prompt are asked for
)

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The tensors of one step: T tokens of B rows side by side, R of which sample."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    attention: AttentionBatch
    sample_rows: Tensor | None  # [R] indices into T; None when every token is sampled from
    sample_slots: IntArray  # [R]
    sample_positions: IntArray  # [R] where the new tokens will stand


@dataclass(frozen=True, slots=True)
class Step:
    """A launched step, until its tokens are fetched."""

    sampled: Sampled | None
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)


class ModelRunner:
    """Mirrors `max_num_seqs` slots of up to `max_model_len` tokens over the caches' blocks."""

    def __init__(
        self, model: Decoder, caches: Sequence[Cache], block_size: int, max_num_seqs: int, max_model_len: int, device: torch.device
    ) -> None:
        self.model = model
        self.caches = caches
        self.device = device
        self.block_size = block_size
        self.sampler = Sampler(max_num_seqs, model.spec.vocab_size, device)
        self._tokens = torch.zeros(max_num_seqs, max_model_len + 1, dtype=torch.int32, device=device)
        self._tables = np.zeros((max_num_seqs, -(-max_model_len // self.block_size)), np.int32)
        self._num_prompt = np.zeros(max_num_seqs, np.int64)
        self._prompt_logprobs: dict[int, int] = {}  # slot -> alternatives asked for

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Step:
        """Run the forward and draw the tokens; nothing here waits for the device."""
        for admission in plan.admissions:
            self._admit(admission)
        for slot, first, blocks in plan.new_blocks:
            self._tables[slot, first : first + len(blocks)] = blocks
        batch = self.prepare(plan)
        hidden = self.forward(batch)
        prompt_logprobs = self._score_prompts(plan, hidden) if self._prompt_logprobs else {}
        if not batch.sample_slots.size:
            return Step(None, prompt_logprobs)
        rows = hidden if batch.sample_rows is None else hidden.index_select(0, batch.sample_rows)
        sampled = self.sampler.sample(self.logits(rows), batch.sample_slots, batch.sample_positions)
        where = torch.from_numpy(batch.sample_slots), torch.from_numpy(batch.sample_positions)
        self._tokens[where] = sampled.token_ids.clamp_min(0).to(torch.int32)
        return Step(sampled, prompt_logprobs)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [T, C] of a step's tokens."""
        return self.model(batch.token_ids, batch.positions, batch.attention, batch.slot_mapping, self.caches)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, V] in float32 of hidden rows [R, C]."""
        return self.model.logits(hidden)

    def fetch(self, step: Step) -> StepResult:
        """The step's tokens as plain values; waits for the device."""
        if step.sampled is None:
            return StepResult([], prompt_logprobs=step.prompt_logprobs)
        token_ids, logprobs = step.sampled.to_host()
        return StepResult(token_ids, logprobs, step.prompt_logprobs)

    def prepare(self, plan: Plan) -> Batch:
        """The tensors that a plan stands for."""
        slots = np.array(plan.slots, np.int64)
        starts = np.array(plan.starts, np.int64)
        counts = np.array(plan.counts, np.int64)
        ends = starts + counts
        cu_seqlens = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(counts, out=cu_seqlens[1:])
        if cu_seqlens[-1] == len(slots):  # one token each
            token_slots, positions = slots, starts
        else:
            token_slots = np.repeat(slots, counts)
            positions = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], counts)
        tables = self._tables[slots, : -(-int(ends.max()) // self.block_size)]
        block, offset = np.divmod(positions, self.block_size)
        slot_mapping = self._tables[token_slots, block].astype(np.int64) * self.block_size + offset
        samples = np.array(plan.samples)
        every_token = bool(samples.all()) and token_slots is slots
        positions_on_device = self._to_device(positions)
        return Batch(
            token_ids=self._tokens[self._to_device(token_slots), positions_on_device],
            positions=positions_on_device,
            slot_mapping=self._to_device(slot_mapping),
            attention=AttentionBatch(
                cu_seqlens_q=self._to_device(cu_seqlens),
                seq_lens=self._to_device(ends.astype(np.int32)),
                block_table=self._to_device(tables),
                query_lens=plan.counts,
                kv_lens=ends.tolist(),
            ),
            sample_rows=None if every_token else self._to_device(cu_seqlens[1:][samples].astype(np.int64) - 1),
            sample_slots=slots[samples],
            sample_positions=ends[samples],
        )

    def _to_device(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def _admit(self, admission: Admission) -> None:
        slot = admission.slot
        ids = torch.tensor(admission.token_ids, dtype=torch.int32)
        self._tokens[slot, : len(ids)] = ids.to(self.device, non_blocking=True)
        self._num_prompt[slot] = admission.num_prompt_tokens
        self._prompt_logprobs.pop(slot, None)
        if admission.sampling.prompt_logprobs is not None:
            self._prompt_logprobs[slot] = admission.sampling.prompt_logprobs
        self.sampler.admit(admission)

    def _score_prompts(self, plan: Plan, hidden: Tensor) -> dict[int, list[TokenLogprob]]:
        """Log probabilities of the prompt tokens that follow the positions computed in this step."""
        scores: dict[int, list[TokenLogprob]] = {}
        first = 0
        for row, (slot, start, count) in enumerate(zip(plan.slots, plan.starts, plan.counts, strict=True)):
            num_top = self._prompt_logprobs.get(slot)
            known = min(count, int(self._num_prompt[slot]) - 1 - start)
            if num_top is not None and known > 0:
                targets = self._tokens[slot, start + 1 : start + 1 + known].long()
                scores[row] = self._score(hidden[first : first + known], targets, num_top)
            first += count
        return scores

    def _score(self, hidden: Tensor, targets: Tensor, num_top: int) -> list[TokenLogprob]:
        scores: list[TokenLogprob] = []
        for rows, ids in zip(hidden.split(LOGITS_ROWS), targets.split(LOGITS_ROWS), strict=True):
            sampled = Sampled(ids, token_logprobs(self.logits(rows), ids, num_top), (num_top,) * len(ids))
            scores += [logprob for logprob in sampled.to_host()[1] or () if logprob is not None]
        return scores
