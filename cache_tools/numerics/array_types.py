"""Types of arrays by their numbers, with numpy's letters: I8 is an array of int64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I1 = NDArray[np.int8]
I2 = NDArray[np.int16]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U1 = NDArray[np.uint8]
U2 = NDArray[np.uint16]
U4 = NDArray[np.uint32]
U8 = NDArray[np.uint64]
Rows = NDArray[np.signedinteger[Any]]
"""Row numbers, int32 where that suffices: an epoch has millions of them."""
