"""When the recurrent state of a running request is kept as a snapshot, and under which name. Ids only."""

from sirocco.runtime.plan import Plan
from sirocco.runtime.prefix import PrefixCache, extend_digests
from sirocco.runtime.sequence import Request
from sirocco.runtime.snapshots import Snapshots


class StateKeeper:
    """Keeps states at the last border of a prompt, where requests that share it part, and every so many tokens."""

    def __init__(self, prefix: PrefixCache, snapshots: Snapshots) -> None:
        self._unit = prefix.unit
        self._border = prefix.border
        self._snapshots = snapshots

    def up_to_border(self, request: Request, count: int) -> int:
        """Of `count` tokens so many that the state after them can be kept, where there is such a place."""
        start, end = request.num_computed, request.num_computed + count
        if start < request.border <= end:
            return request.border - start
        aligned = end // self._border * self._border
        return (aligned if start < aligned and end < request.border else end) - start

    def plan(self, request: Request, plan: Plan) -> None:
        """Keep the state after the last row of the plan, which is the request's, if it is due there."""
        end = request.num_computed
        due = end == request.border or end - request.num_saved >= self._snapshots.interval
        if due and end % self._border == 0 and (snapshot := self._snapshots.reserve()) is not None:
            plan.saves.append((len(plan.slots) - 1, snapshot))
            request.num_saved = end

    def commit(self, plan: Plan, requests: list[Request]) -> None:
        """Name what the plan has kept by the tokens before it."""
        for row, snapshot in plan.saves:
            request, end = requests[row], plan.starts[row] + plan.counts[row]
            if len(request.token_ids) <= end:  # it ended before these tokens were known, or at numbers not finite
                self._snapshots.release(snapshot)
                continue
            extend_digests(request.digests, request.root, request.token_ids, self._unit)
            self._snapshots.register(snapshot, request.digests[end // self._unit - 1])

    def fail(self, plan: Plan) -> None:
        """The plan was not carried out."""
        for _, snapshot in plan.saves:
            self._snapshots.release(snapshot)
