"""What the drivers are told beyond the peers' `Spec`."""

from sirocco.bench.peers.drivers.host import Spec


class MoeSpec(Spec):
    """`shape` is a name of `random.SHAPES`, `experts` the way transformers computes them; `folder` is not read."""

    shape: str
    experts: str
