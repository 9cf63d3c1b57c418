"""Let the GPU copy straight from the ring: the memory is registered with CUDA once, when the stream is made."""

import weakref

import torch

from fmri_scale.data.ring import Ring
from fmri_scale.log import get_logger


def pin(ring: Ring) -> bool:
    """Register the ring's memory where there is a CUDA device; return whether it is registered.

    Without it copies still work, but through a buffer of the driver and in step with the host.
    """
    if not torch.cuda.is_available():
        return False
    address, size = ring.address
    cudart = torch.cuda.cudart()
    status = int(cudart.cudaHostRegister(address, size, 0))
    if status:
        get_logger(__name__).warning("the loader's memory cannot be pinned (CUDA error %d); copies will wait", status)
        return False
    weakref.finalize(ring, cudart.cudaHostUnregister, address).atexit = False
    return True
