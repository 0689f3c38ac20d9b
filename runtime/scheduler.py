"""Which request computes how many tokens in each step. Pure Python over ints.

There is no prefill phase and no decode phase: a request has `num_computed` tokens in the cache, and a step moves some
requests forward. Chunked prefill, prefix hits and preemption are all that one number. `plan` advances it at once;
`commit` may come a plan later, so a token that is still being sampled counts as a placeholder.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from sirocco.runtime.blocks import BlockGroup, BlockPool
from sirocco.runtime.plan import Admission, Plan, StepResult
from sirocco.runtime.prefix import Match, PrefixCache, extend_digests, root_digest
from sirocco.runtime.request import FinishReason, TokenLogprob
from sirocco.runtime.sequence import Regimes, Request
from sirocco.runtime.state_keeper import StateKeeper
from sirocco.runtime.waiting import WaitingQueue
from sirocco.runtime.wire import EngineRequest, EngineStats, SequenceOutput

_urgency = attrgetter("urgency")


class Scheduler:
    """Owns requests from `add` to their last token.

    `token_budget` bounds the tokens of a step; while other requests decode, prompts get at most `chunk_size` of them.
    With several prompts in line none takes more than half of what is left, so a short one starts beside a long one.
    `groups` say what a block of the pool holds for which layers.
    """

    def __init__(
        self,
        pool: BlockPool,
        groups: Sequence[BlockGroup],
        max_num_seqs: int,
        token_budget: int,
        chunk_size: int,
        prefix: PrefixCache | None = None,
        regimes: Regimes | None = None,
    ) -> None:
        if token_budget < max_num_seqs:
            raise ValueError(f"token_budget {token_budget} cannot serve {max_num_seqs} sequences a step")
        self.pool = pool
        self.groups = groups
        self.token_budget = token_budget
        self.chunk_size = chunk_size
        self.prefix = prefix
        self.regimes = regimes
        snapshots = None if prefix is None else prefix.snapshots
        self._states = None if prefix is None or snapshots is None else StateKeeper(prefix, snapshots)
        self._has_windows = any(group.window is not None for group in groups)
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._running: list[Request] = []  # most urgent first
        self._waiting = WaitingQueue()
        self._num_leaving = 0
        self._requests: dict[int, list[Request]] = {}  # unfinished choices by id
        self._in_flight: deque[tuple[Plan, list[Request]]] = deque()
        self._arrivals = 0
        self._steps = self._prompt_tokens = self._generated = self._preemptions = self._queries = self._hits = 0

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Choices after the first wait for its prompt, to share it."""
        choices = []
        for index in range(request.n):
            self._arrivals += 1
            choices.append(Request(request, index, self._arrivals, self.groups))
        self._requests[request.id] = choices
        leader = choices[0]
        if self.prefix is not None:
            leader.followers = choices[1:]
            for follower in leader.followers:
                follower.held = True
            self._enqueue(leader)
        else:
            for choice in choices:
                self._enqueue(choice)

    def abort(self, id: int, index: int | None = None) -> None:
        """End a request, or one choice of it, without output. Unknown ids are ignored."""
        for request in list(self._requests.get(id, ())):
            if index is None or request.index == index:
                if index is None:
                    request.followers = []
                self._end(request)

    def pause(self, id: int, paused: bool) -> None:
        """Keep a request out of the plans, or let it in again. Its blocks stay its own unless others need them."""
        for request in self._requests.get(id, ()):
            if request.paused != paused:
                request.paused = paused
                self._waiting.retry()  # a paused request gives up its blocks to the next one
                if not paused and request.slot < 0 and not request.held:
                    self._enqueue(request)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=self.pool.num_used,
            blocks_total=self.pool.num_blocks - 1,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated,
            preemptions=self._preemptions,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
        )

    def plan(self) -> Plan:
        """Choose the rows of the next step: those one token behind, then prompts by urgency. Empty when there is
        nothing to do.
        """
        plan, requests = Plan(), list[Request]()
        budget = self.token_budget
        prefills = deque[Request]()
        for request in list(self._running):
            pending = request.num_pending
            if pending == 0 or request.paused or request.leaving or request.slot < 0:
                continue  # nothing to do now: all in flight, paused, or preempted by an earlier row
            if request.regime_limit is not None and request.num_computed + pending > request.regime_limit:
                self._preempt(request)  # its cache means nothing beyond this length
                continue
            if pending > 1:
                prefills.append(request)
            elif self._reserve(request, 1, plan, requests):
                self._append_row(request, 1, plan, requests)
                budget -= 1
        if requests:
            budget = min(budget, self.chunk_size)
        self._plan_prefills(prefills, budget, plan, requests)
        assert plan or not plan.admissions, "the runner hears of every admission"
        if plan:
            self._in_flight.append((plan, requests))
            self._steps += 1
        return plan

    def commit(self, plan: Plan, result: StepResult) -> list[SequenceOutput]:
        """Take in the tokens of the oldest plan in flight; returns what callers should hear."""
        requests = self._retire(plan)
        outputs = []
        tokens = iter(zip(result.token_ids, result.logprobs or [None] * len(result.token_ids), strict=True))
        for row, request in enumerate(requests):
            sampled = next(tokens) if plan.samples[row] else None
            if not request.finished:
                output = self._advance(request, plan, row, sampled, result)
                if output is not None:
                    outputs.append(output)
            self._settle(request)
        if self._states is not None:
            self._states.commit(plan, requests)
            if plan.saves:
                self._waiting.retry()  # with a state that has become known more blocks may be shared
        return outputs

    def fail(self, plan: Plan, message: str) -> list[SequenceOutput]:
        """The oldest plan in flight could not be computed: end its requests with an error."""
        outputs = []
        for request in self._retire(plan):
            if not request.finished:
                outputs.append(SequenceOutput(request.id, request.index, [], "error", error=message))
                self._end(request)
            self._settle(request)
        if self._states is not None:
            self._states.fail(plan)
        return outputs

    def _plan_prefills(self, prefills: deque[Request], budget: int, plan: Plan, requests: list[Request]) -> None:
        """Fill the budget with running prompts and waiting requests, the most urgent first."""
        num_left = len(prefills) + min(len(self._waiting), len(self._free_slots))
        admitting = True
        while budget > 0:
            waiting = self._first_admissible() if admitting else None
            if waiting is not None and not (prefills and prefills[0].urgency < waiting.urgency):
                request = waiting
                if not self._admit(request, plan):
                    admitting = False  # a younger request must not take what this one waits for
                    continue
                if request in prefills:  # preempted by an earlier row, and let in again
                    prefills.remove(request)
            elif prefills:
                request = prefills.popleft()
                if request.slot < 0 or request.leaving:
                    continue  # preempted by an earlier row
            else:
                break
            num_left -= 1
            share = budget if num_left <= 0 else max(budget // 2, 1)
            count = min(request.num_pending, share)
            if self._states is not None:
                count = self._states.up_to_border(request, count)
            if not self._reserve(request, count, plan, requests):
                break
            self._append_row(request, count, plan, requests)
            budget -= count

    def _first_admissible(self) -> Request | None:
        """The head of the waiting queue, if there is a slot for it."""
        waiting = self._waiting.first()
        return waiting if waiting is not None and (self._free_slots or self._park_paused()) else None

    def _admit(self, request: Request, plan: Plan) -> bool:
        """Give a waiting request a slot and what the prefix cache has of it, if the rest of its tokens finds room."""
        if self._waiting.is_refused(request, self._room):
            return False
        if self.regimes is not None:
            self._set_regime(request, self.regimes)
        match = self._match(request)
        hits = [] if match is None else match.blocks
        self.pool.share(hits)
        needed = sum(group.blocks_for(len(request.token_ids), self.token_budget) for group in self.groups) - len(hits)
        lacking = self._lacking(needed)
        if lacking > 0 and (self._running or self._in_flight):
            self.pool.free(reversed(hits))
            self._waiting.refuse(request, self._room + lacking)
            return False
        self._waiting.pop()
        request.slot = self._free_slots.pop()
        if match is not None:
            self._begin_at(request, match, plan)
        if request.num_cached is None:
            request.num_cached = request.num_computed
            self._queries += request.num_prompt
            self._hits += request.num_cached
            self._prompt_tokens += request.num_prompt
        insort(self._running, request, key=_urgency)
        plan.admissions.append(
            Admission(
                request.slot,
                request.token_ids.copy(),
                request.num_prompt,
                request.sampling,
                request.seed,
                request.regime,
            )
        )
        return True

    @property
    def _room(self) -> int:
        """What a request that lacks blocks waits for: it grows by each that is freed, or made known and so shared.

        A block made known can join others to a longer prefix, which shares more at once; that it hears of later.
        """
        return self.pool.num_free + self.pool.num_registered

    def _lacking(self, needed: int) -> int:
        """How many of `needed` blocks are not to be had; what paused requests hold is taken if it is enough."""
        paused = [request for request in self._running if request.paused and request.num_in_flight == 0]
        lacking = needed - self.pool.num_free - sum(request.tables.num_held for request in paused)
        if lacking > 0:
            return lacking
        while paused and needed > self.pool.num_free:
            self._preempt(paused.pop())
        return needed - self.pool.num_free

    def _match(self, request: Request) -> Match | None:
        """What the prefix cache has of a request; None for one that shares nothing."""
        if self.prefix is None or request.sampling.prompt_logprobs is not None:
            return None
        extend_digests(request.digests, request.root, request.token_ids, self.prefix.unit)
        return self.prefix.match(request.digests, len(request.token_ids) - 1)  # one token must be computed

    def _begin_at(self, request: Request, match: Match, plan: Plan) -> None:
        """Let a request that was given a slot start where a known prefix ends."""
        assert self.prefix is not None
        for extension in request.tables.adopt(match.found):
            plan.new_blocks.append((request.slot, *extension))
        request.num_computed = request.num_saved = match.length
        request.num_registered = match.length // self.prefix.unit
        if match.snapshot is not None:
            plan.restores.append((match.snapshot, request.slot))
        request.border = (len(request.token_ids) - 1) // self.prefix.border * self.prefix.border

    def _set_regime(self, request: Request, regimes: Regimes) -> None:
        """The regime of its prompt, and once that is outgrown of what it has by then; nothing else may change it.

        Blocks are shared within a regime only.
        """
        length = len(request.token_ids)
        if request.num_cached is not None and length <= (request.regime_limit or length):
            return  # was admitted before
        regime = regimes.of(length)
        if regime != request.regime:
            request.regime = regime
            request.root = root_digest(request.salt, regime)
            request.digests = []
        request.regime_limit = regimes.limit(regime)

    def _reserve(self, request: Request, count: int, plan: Plan, requests: list[Request]) -> bool:
        """Own blocks for `count` more tokens, preempting less urgent requests that are not in this plan."""
        tables, length = request.tables, request.num_computed + count
        if length <= tables.room:
            return True
        if self._has_windows:  # steps in flight read the blocks before they are written anew
            self.pool.free(tables.leave(request.num_computed))
        missing = tables.missing(length)
        while (blocks := self.pool.allocate(sum(missing))) is None:
            victim = None if self._num_leaving else self._victim(request, requests)
            if victim is None:
                return False  # nobody to displace, or somebody's last step is about to make room
            self._preempt(victim)
        for extension in tables.extend(missing, blocks):
            plan.new_blocks.append((request.slot, *extension))
        return True

    def _victim(self, request: Request, requests: list[Request]) -> Request | None:
        """The least urgent running request outside this plan that `request` may displace; paused ones go first."""
        planned = set(map(id, requests))
        others = [r for r in self._running if r is not request and id(r) not in planned and r.tables.room]
        paused = [r for r in others if r.paused]
        if paused:
            return paused[-1]
        if others and others[-1].urgency > request.urgency:
            return others[-1]
        return None

    def _append_row(self, request: Request, count: int, plan: Plan, requests: list[Request]) -> None:
        samples = count == request.num_pending
        plan.slots.append(request.slot)
        plan.starts.append(request.num_computed)
        plan.counts.append(count)
        plan.samples.append(samples)
        requests.append(request)
        request.num_computed += count
        request.num_in_flight += 1
        if samples:
            request.num_placeholders += 1
        if self._states is not None:
            self._states.plan(request, plan)

    def _retire(self, plan: Plan) -> list[Request]:
        oldest, requests = self._in_flight.popleft()
        assert oldest is plan, "plans retire in the order they were made"
        for request in requests:
            request.num_in_flight -= 1
        return requests

    def _advance(
        self,
        request: Request,
        plan: Plan,
        row: int,
        sampled: tuple[int, TokenLogprob | None] | None,
        result: StepResult,
    ) -> SequenceOutput | None:
        computed = plan.starts[row] + plan.counts[row]
        if request.sampling.prompt_logprobs is not None:
            self._collect_prompt_logprobs(request, plan.starts[row], result.prompt_logprobs.get(row, ()))
        if sampled is None:
            self._register(request, computed)
            return None
        token_id, logprob = sampled
        request.num_placeholders -= 1
        first = len(request.token_ids) == request.num_prompt
        if token_id < 0:
            self._end(request)
            message = "the model produced logits that are not finite"
            return SequenceOutput(request.id, request.index, [], "error", error=message)
        request.token_ids.append(token_id)
        self._generated += 1
        self._register(request, computed)
        if first:
            self._release_followers(request)
        reason: FinishReason | None = None
        if token_id in request.stop_ids:
            reason = "stop"
        elif len(request.token_ids) - request.num_prompt >= request.sampling.max_tokens:
            reason = "length"
        if reason is not None:
            self._end(request)
        return SequenceOutput(
            request.id,
            request.index,
            [token_id],
            reason,
            None if logprob is None else [logprob],
            (request.num_cached or 0) if first else 0,
            request.prompt_logprobs if first else None,
        )

    def _collect_prompt_logprobs(self, request: Request, start: int, known: Sequence[TokenLogprob]) -> None:
        if request.prompt_logprobs is None:
            request.prompt_logprobs = [None] * request.num_prompt
        for position, logprob in enumerate(known, start + 1):
            if position < request.num_prompt:
                request.prompt_logprobs[position] = logprob

    def _register(self, request: Request, computed: int) -> None:
        """Hand the blocks that are full and computed to the prefix cache."""
        if self.prefix is None:
            return
        full = min(computed, request.tables.room) // self.prefix.unit
        if full <= request.num_registered:
            return
        extend_digests(request.digests, request.root, request.token_ids, self.prefix.unit)
        self.prefix.register(request.tables, request.digests, request.num_registered, full)
        request.num_registered = full

    def _settle(self, request: Request) -> None:
        """Once its last step in flight has retired, an ended or preempted request gives back what it owns."""
        if request.num_in_flight > 0:
            return
        if request.paused:
            self._waiting.retry()  # its blocks can be had now
        if request.finished:
            self._give_back(request)
        elif request.leaving:
            request.leaving = False
            self._num_leaving -= 1
            self._give_back(request)
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if not (request.paused or request.leaving):
            self._waiting.push(request)

    def _release_followers(self, request: Request) -> None:
        followers, request.followers = request.followers, []
        for follower in followers:
            follower.held = False
            if not follower.finished:
                self._enqueue(follower)

    def _park_paused(self) -> bool:
        """Take the slot of a paused request, so that a reader who stopped holds up nobody."""
        for request in reversed(self._running):
            if request.paused and request.num_in_flight == 0:
                self._preempt(request)
                return True
        return False

    def _preempt(self, request: Request) -> None:
        self._preemptions += 1
        self._running.remove(request)
        request.num_computed = 0
        if request.num_in_flight > 0:
            request.leaving = True
            self._num_leaving += 1
        else:
            self._give_back(request)
            self._enqueue(request)

    def _end(self, request: Request) -> None:
        request.finished = True
        choices = self._requests[request.id]
        choices.remove(request)
        if not choices:
            del self._requests[request.id]
        self._waiting.leave(request)
        self._release_followers(request)
        if request.leaving:
            request.leaving = False
            self._num_leaving -= 1
        elif request.slot >= 0:
            self._running.remove(request)
        if request.num_in_flight == 0:
            self._give_back(request)

    def _give_back(self, request: Request) -> None:
        self.pool.free(request.tables.clear())
        request.num_registered = request.num_saved = request.border = 0
        if request.slot >= 0:
            self._free_slots.append(request.slot)
            request.slot = -1
