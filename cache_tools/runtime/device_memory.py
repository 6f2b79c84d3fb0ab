"""Errors of an allocation that failed, on a device or the host.

torch has a type of its own for its allocator's; libraries below it (cuBLAS, cuDNN, the driver)
report theirs as a RuntimeError with a status in the text.
"""

import re

from cache_tools.errors import UsageError

_FAILED_ALLOCATION = re.compile(
    r"out of memory|not enough memory|can't allocate memory|ALLOC(ATION)?_FAILED"
    r"|failed to map segment|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED|valid cuDNN algorithm",
    re.IGNORECASE,
)
"""Texts of the allocators of CUDA and the CPU, the loader of libraries, cuBLAS, cuDNN, cuSOLVER,
cuFFT. A handle that cannot be created for lack of memory is "not initialized"."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed, so that less work at once may succeed."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    told = isinstance(error, (RuntimeError, ImportError))
    return told and bool(_FAILED_ALLOCATION.search(str(error)))


def too_small(student: str, error: BaseException) -> UsageError:
    """Return the error for a student that does not fit on its device."""
    return UsageError(
        f"the device is too small for {student} ({str(error).partition('.')[0]}). Lower batch_size "
        "and raise grad_accum_steps."
    )
