"""What one step computes, as plain ints: the scheduler writes it, the runner carries it out, `StepResult` comes back.

A plan holds everything the runner needs to know, so it could be sent to other ranks: a runner mirrors each running
request in a slot (its tokens, its block table, its sampling parameters) and learns of changes only here.
"""

from dataclasses import dataclass, field

from sirocco.runtime.request import TokenLogprob
from sirocco.runtime.wire import Sampling


@dataclass(frozen=True, slots=True)
class Admission:
    """A request takes a slot: its tokens so far (outputs included, if it was preempted) and how to sample."""

    slot: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: Sampling
    seed: int
    regime: int = 0  # of a length-dependent rotary embedding


@dataclass(frozen=True, slots=True)
class Plan:
    """Row i computes `counts[i]` tokens of the request in `slots[i]`, from position `starts[i]` on.

    Rows that sample draw the token at position `starts[i] + counts[i]`; the runner keeps it, so a later plan may
    compute it before the scheduler has seen it. Rows one token behind come first. `new_blocks` are (slot, group of
    layers, index in its table, block ids). Before the step the recurrent states in `restores` are copied, (snapshot,
    slot); after it those in `saves`, (row, snapshot).
    """

    slots: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    new_blocks: list[tuple[int, int, int, list[int]]] = field(default_factory=list)
    restores: list[tuple[int, int]] = field(default_factory=list)
    saves: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)

    def __bool__(self) -> bool:
        return bool(self.slots)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The token of each row that sampled, in row order; -1 where the logits were not finite.

    `logprobs` is parallel to `token_ids` where any row asked for them. `prompt_logprobs` maps a row to the log
    probabilities of the prompt tokens at positions start + 1 … start + count that are known.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
