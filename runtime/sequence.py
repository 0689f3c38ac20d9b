"""A request as the scheduler sees it: one sequence of tokens and how far it has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from sirocco.runtime.blocks import BlockGroup
from sirocco.runtime.prefix import root_digest
from sirocco.runtime.request import MAX_SEED, TokenLogprob
from sirocco.runtime.tables import BlockTables
from sirocco.runtime.wire import EngineRequest, Sampling


@dataclass(frozen=True, slots=True)
class Regimes:
    """Where a rotary embedding depends on the length of the whole request.

    `of` gives the regime of a length, `limit` up to how many tokens a request may keep a regime (None: for good).
    """

    of: Callable[[int], int]
    limit: Callable[[int], int | None]


class Request:
    """One sequence: a choice of an `EngineRequest`. Mutable, owned by the scheduler."""

    __slots__ = (
        "border",
        "digests",
        "finished",
        "followers",
        "held",
        "id",
        "index",
        "leaving",
        "num_cached",
        "num_computed",
        "num_in_flight",
        "num_placeholders",
        "num_prompt",
        "num_registered",
        "num_saved",
        "paused",
        "prompt_logprobs",
        "queued",
        "regime",
        "regime_limit",
        "root",
        "salt",
        "sampling",
        "seed",
        "slot",
        "stop_ids",
        "tables",
        "token_ids",
        "urgency",
    )

    def __init__(self, request: EngineRequest, index: int, arrival: int, groups: Sequence[BlockGroup]) -> None:
        self.id = request.id
        self.index = index
        self.sampling = request.sampling if index == 0 else _without_prompt_logprobs(request.sampling)
        self.seed = (request.sampling.seed + index) % MAX_SEED
        self.stop_ids = frozenset(request.sampling.stop_token_ids)
        self.urgency = (request.priority, arrival)
        self.salt = request.salt
        self.root = root_digest(request.salt)
        self.regime = 0
        self.regime_limit: int | None = None
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt = len(self.token_ids)
        self.num_computed = 0
        self.num_placeholders = 0  # tokens being sampled by steps in flight
        self.num_in_flight = 0  # steps in flight that hold a row of it
        self.num_cached: int | None = None  # prompt tokens found in the prefix cache at the first admission
        self.slot = -1
        self.tables = BlockTables(groups)
        self.digests: list[bytes] = []
        self.num_registered = 0  # of the units that digests name, handed to the prefix cache
        self.border = 0  # where a recurrent state is saved for requests with the same prompt
        self.num_saved = 0  # tokens at its last saved state
        self.queued = False  # has an entry in the waiting heap
        self.paused = False
        self.finished = False
        self.leaving = False  # preempted, waiting for its last step in flight
        self.held = False  # waits for the first choice's prompt, to share it
        self.followers: list[Request] = []  # the choices that wait for this one
        self.prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that exist but are not computed."""
        if len(self.token_ids) - self.num_prompt + self.num_placeholders >= self.sampling.max_tokens:
            return 0  # the last token is never computed
        return len(self.token_ids) + self.num_placeholders - self.num_computed

    def __repr__(self) -> str:
        return f"Request({self.id}.{self.index}, {self.num_computed}/{len(self.token_ids)}+{self.num_placeholders})"


def _without_prompt_logprobs(sampling: Sampling) -> Sampling:
    """For choices after the first, which has them: these may take the prompt from the cache."""
    return sampling if sampling.prompt_logprobs is None else replace(sampling, prompt_logprobs=None)
