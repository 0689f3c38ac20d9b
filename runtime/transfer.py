"""Between host and device without waiting: copies are queued behind what the device has to do."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """The values on the device, which share their memory on a CPU."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        host = host.pin_memory()  # from pageable memory the copy would wait for the device
    return host.to(device, non_blocking=True)


class HostCopy:
    """Tensors on their way to the host."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            )
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors; waits for what was queued before them and for nothing after."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
