"""Compiling before the first request what an engine will launch."""

from collections.abc import Iterable

from sirocco.kernels.triton.cases import Call, Dims, calls
from sirocco.kernels.triton.common import compile_launch, compiled_variants, recording


def warm_up(dims: Dims, also: Iterable[Call] = (), load: bool = True) -> int:
    """Compile for the current device every variant of a model's operators; returns how many were new.

    `also` are further calls of launchers on meta tensors, for operators that `cases` does not know. `load` puts the
    binaries on the device, which a first launch would wait for.
    """
    before = compiled_variants()
    with recording() as launches:
        for call in (*calls(dims), *also):
            call()
    for launch in launches:
        compiled = compile_launch(launch)
        if load:
            _ = compiled.run  # which loads
    return compiled_variants() - before
