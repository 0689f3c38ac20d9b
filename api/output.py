"""Standard output whose reader may go away."""

import os
import sys


def drop_output() -> None:
    """Have what is still buffered, and all that is printed from now on, go nowhere rather than fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
