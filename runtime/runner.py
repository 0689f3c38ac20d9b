"""Carries out plans on a device: plan → tensors of the step → forward → tokens.

Each running request has a slot. Its token ids live in a device buffer where sampled tokens are written too, so that the
next step can read them before the host has. Lengths, tables and slot mappings are computed on the host from the plan's
ints. Where decode steps are captured (`graphs.py`), the tables are mirrored on the device too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.mamba import StateBatch
from sirocco.kernels.sampling import token_logprobs
from sirocco.runtime.graphs import Capture, DecodeGraphs
from sirocco.runtime.models.cache import Cache, StateCache
from sirocco.runtime.models.cache_spec import CacheGroup
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.spec import regime_limit
from sirocco.runtime.models.step import Placement
from sirocco.runtime.plan import Admission, Plan, StepResult
from sirocco.runtime.request import TokenLogprob
from sirocco.runtime.sampler import Sampled, SampledCopy, Sampler
from sirocco.runtime.table_mirror import TableMirror, by_group
from sirocco.runtime.transfer import to_device

LOGITS_ROWS = 128  # prompt positions whose logits are computed at a time where their log probabilities are asked for

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the T tokens of a step's B rows stand, on the host."""

    slots: IntArray  # [B]
    counts: list[int]  # [B]
    ends: IntArray  # [B] tokens of a row once the step is done
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    token_slots: IntArray  # [T]
    positions: IntArray  # [T]
    slot_mappings: list[IntArray]  # [T] for each group of layers
    samples: NDArray[np.bool_]  # [B] rows that sample

    @property
    def one_each(self) -> bool:
        return len(self.positions) == len(self.slots)

    @property
    def sample_rows(self) -> IntArray | None:
        """Indices into T of the tokens that are sampled from; None where all are."""
        if self.one_each and self.samples.all():
            return None
        return self.cu_seqlens[1:][self.samples].astype(np.int64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The tensors of one step: T tokens of B rows side by side."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    attention: AttentionBatch
    states: StateBatch | None = None  # where the model is recurrent
    rope_regimes: Tensor | None = None  # [T], where its rotary embedding depends on a request's length
    others: tuple[Placement, ...] = ()  # for groups of layers after the first


@dataclass(frozen=True, slots=True)
class Step:
    """A launched step, until its tokens are fetched."""

    sampled: SampledCopy | None
    prompt_logprobs: dict[int, list[SampledCopy]] = field(default_factory=dict)  # by row


class ModelRunner:
    """Mirrors `max_num_seqs` slots of up to `max_model_len` tokens over the caches' blocks.

    Recurrent states of running requests lie in the caches' first slots, those kept for prefixes behind them and behind
    the one slot between that is nobody's.
    """

    def __init__(
        self,
        model: Decoder,
        caches: Sequence[Cache],
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        device: torch.device,
        groups: Sequence[CacheGroup],
    ) -> None:
        model.fuse(caches)
        self.model = model
        self.caches = caches
        self.device = device
        self.block_size = block_size
        self.sampler = Sampler(max_num_seqs, model.spec.vocab_size, device)
        # One slot more, which is nobody's: padding rows of a captured step are its.
        self._tokens = torch.zeros(max_num_seqs + 1, max_model_len + 1, dtype=torch.int32, device=device)
        self._tables = [TableMirror(group, max_num_seqs + 1, max_model_len, block_size) for group in groups]
        self._graphs: DecodeGraphs | None = None
        self._num_prompt = np.zeros(max_num_seqs, np.int64)
        self._states = [cache for cache in caches if isinstance(cache, StateCache)]
        self._first_snapshot = max_num_seqs + 1
        self._has_regimes = regime_limit(model.spec, 0) is not None
        self._regimes = np.zeros(max_num_seqs + 1, np.int64)
        self._prompt_logprobs: dict[int, int] = {}  # slot -> alternatives asked for

    @torch.inference_mode()
    def capture(self, capture: Capture) -> None:
        """Capture decode steps of all numbers of rows, before the first request."""
        self._graphs = DecodeGraphs(
            self._decode,
            self._tokens,
            [table.to(self.device) for table in self._tables],
            self.block_size,
            len(self._tokens) - 1,
            recurrent=bool(self._states),
        )
        self._graphs.capture(capture)

    def release_captures(self) -> None:
        """Launch decode steps kernel by kernel from now on."""
        self._graphs = None

    @property
    def graph_misses(self) -> int:
        """Steps of decodes that no capture held, so that they ran kernel by kernel."""
        return 0 if self._graphs is None else self._graphs.misses

    def check_device(self) -> None:
        """Raises what a CUDA device raises for ever once a kernel of this process went wrong on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Step:
        """Run the forward and draw the tokens; nothing here waits for the device."""
        for admission in plan.admissions:
            self._admit(admission)
        self._extend_tables(plan)
        if plan.restores:
            self._copy_states([(self._first_snapshot + snapshot, slot) for snapshot, slot in plan.restores])
        layout = self.lay_out(plan)
        hidden = self._replay(layout)
        if hidden is None:
            hidden = self.forward(self.prepare(layout))
        if plan.saves:
            self._copy_states([(plan.slots[row], self._first_snapshot + snapshot) for row, snapshot in plan.saves])
        prompt_logprobs = self._score_prompts(plan, hidden) if self._prompt_logprobs else {}
        if not layout.samples.any():
            return Step(None, prompt_logprobs)
        if (sample_rows := layout.sample_rows) is not None:
            hidden = hidden.index_select(0, to_device(sample_rows, self.device))
        slots, positions = layout.slots[layout.samples], layout.ends[layout.samples]
        sampled = self.sampler.sample(self.logits(hidden), slots, positions)
        where = to_device(np.stack([slots, positions]), self.device)
        self._tokens[where[0], where[1]] = sampled.token_ids.clamp_min(0).to(torch.int32)
        return Step(sampled.copy_to_host(), prompt_logprobs)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [T, C] of a step's tokens."""
        return self.model.forward(
            batch.token_ids,
            batch.positions,
            batch.attention,
            batch.slot_mapping,
            self.caches,
            batch.states,
            batch.rope_regimes,
            batch.others,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, V] in float32 of hidden rows [R, C]."""
        return self.model.logits(hidden)

    def fetch(self, step: Step) -> StepResult:
        """The step's tokens as plain values; waits for the device."""
        prompt_logprobs = {row: _known(copies) for row, copies in step.prompt_logprobs.items()}
        if step.sampled is None:
            return StepResult([], prompt_logprobs=prompt_logprobs)
        token_ids, logprobs = step.sampled.wait()
        return StepResult(token_ids, logprobs, prompt_logprobs)

    def lay_out(self, plan: Plan) -> Layout:
        """Where a plan's tokens stand."""
        slots, starts, counts = (np.array(values, np.int64) for values in (plan.slots, plan.starts, plan.counts))
        cu_seqlens = np.zeros(len(slots) + 1, np.int32)
        np.cumsum(counts, out=cu_seqlens[1:])
        if cu_seqlens[-1] == len(slots):  # one token each
            token_slots, positions = slots, starts
        else:
            token_slots = np.repeat(slots, counts)
            positions = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], counts)
        block, offset = np.divmod(positions, self.block_size)
        return Layout(
            slots=slots,
            counts=plan.counts,
            ends=starts + counts,
            cu_seqlens=cu_seqlens,
            token_slots=token_slots,
            positions=positions,
            slot_mappings=[table.slot_mapping(token_slots, block, offset) for table in self._tables],
            samples=np.array(plan.samples),
        )

    def prepare(self, layout: Layout) -> Batch:
        """The tensors of a step."""
        ends = layout.ends
        width = -(-int(ends.max()) // self.block_size)
        slots, positions, *slot_mappings = to_device(
            np.stack([layout.token_slots, layout.positions, *layout.slot_mappings]), self.device
        )
        attention, *others = self._attention_batches(layout, width)
        return Batch(
            token_ids=self._tokens[slots, positions],
            positions=positions,
            slot_mapping=slot_mappings[0],
            attention=attention,
            states=self._state_batch(layout) if self._states else None,
            rope_regimes=to_device(self._regimes[layout.token_slots], self.device) if self._has_regimes else None,
            others=tuple(map(Placement, others, slot_mappings[1:])),
        )

    def _attention_batches(self, layout: Layout, width: int) -> list[AttentionBatch]:
        """The rows of a step over the tables of each group, which are read up to `width`."""
        cu_seqlens_q = to_device(layout.cu_seqlens, self.device)
        seq_lens = to_device(layout.ends.astype(np.int32), self.device)
        kv_lens = layout.ends.tolist()
        return [
            AttentionBatch(
                cu_seqlens_q=cu_seqlens_q,
                seq_lens=seq_lens,
                block_table=to_device(table.host[layout.slots, :width], self.device),
                query_lens=layout.counts,
                kv_lens=kv_lens,
            )
            for table in self._tables
        ]

    def _state_batch(self, layout: Layout) -> StateBatch:
        """A request's state lies in its own slot, and begins with its first token."""
        slots, has_state = to_device(np.stack([layout.slots, layout.ends > layout.counts]), self.device)
        return StateBatch(slots, has_state.bool(), layout.counts)

    def _replay(self, layout: Layout) -> Tensor | None:
        """Hidden states of a captured step; None where there is none."""
        if self._graphs is None or not layout.one_each:
            return None
        regimes = self._regimes[layout.slots]
        return self._graphs.replay(layout.slots, layout.positions, regimes, layout.slot_mappings)

    def _decode(
        self,
        token_ids: Tensor,
        positions: Tensor,
        regimes: Tensor,
        placements: Sequence[Placement],
        states: StateBatch | None,
    ) -> Tensor:
        """Hidden states [B, C] of one token a row, over tensors that stay."""
        first, *others = placements
        rope_regimes = regimes if self._has_regimes else None
        return self.forward(
            Batch(token_ids, positions, first.slot_mapping, first.batch, states, rope_regimes, tuple(others))
        )

    def _extend_tables(self, plan: Plan) -> None:
        if plan.new_blocks:
            for table, changes in zip(self._tables, by_group(plan.new_blocks, len(self._tables)), strict=True):
                table.extend(changes)

    def _copy_states(self, pairs: list[tuple[int, int]]) -> None:
        """Copy recurrent states from slots to slots."""
        sources, targets = to_device(np.array(pairs, np.int64).T, self.device)
        for cache in self._states:
            cache.copy(sources, targets)

    def _admit(self, admission: Admission) -> None:
        slot = admission.slot
        ids = to_device(np.array(admission.token_ids, np.int32), self.device)
        self._tokens[slot, : len(ids)] = ids
        self._num_prompt[slot] = admission.num_prompt_tokens
        self._regimes[slot] = admission.regime
        self._prompt_logprobs.pop(slot, None)
        if admission.sampling.prompt_logprobs is not None:
            self._prompt_logprobs[slot] = admission.sampling.prompt_logprobs
        self.sampler.admit(admission)

    def _score_prompts(self, plan: Plan, hidden: Tensor) -> dict[int, list[SampledCopy]]:
        """Log probabilities of the prompt tokens that follow the positions computed in this step."""
        scores: dict[int, list[SampledCopy]] = {}
        first = 0
        for row, (slot, start, count) in enumerate(zip(plan.slots, plan.starts, plan.counts, strict=True)):
            num_top = self._prompt_logprobs.get(slot)
            known = min(count, int(self._num_prompt[slot]) - 1 - start)
            if num_top is not None and known > 0:
                targets = self._tokens[slot, start + 1 : start + 1 + known].long()
                scores[row] = self._score(hidden[first : first + known], targets, num_top)
            first += count
        return scores

    def _score(self, hidden: Tensor, targets: Tensor, num_top: int) -> list[SampledCopy]:
        return [
            Sampled(ids, token_logprobs(self.logits(rows), ids, num_top), (num_top,) * len(ids)).copy_to_host()
            for rows, ids in zip(hidden.split(LOGITS_ROWS), targets.split(LOGITS_ROWS), strict=True)
        ]


def _known(copies: list[SampledCopy]) -> list[TokenLogprob]:
    return [logprob for copy in copies for logprob in copy.wait()[1] or () if logprob is not None]
