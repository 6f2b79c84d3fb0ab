"""Functions and memory by their addresses, for compiled code.

Addresses are arguments of compiled code, so that it can be kept on disk: as constants they would be
those of the process that compiled it. numba links a function into each that calls it and optimises
it there again, for seconds; called by its address it is compiled once. Neither the address nor the
types of the arguments are checked: a wrong one ends the process.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

OK = 1
"""Returned by a compiled function that no exception has ended; see `call`."""


@intrinsic
def _function(_: Any, address: Any, arguments: Any) -> Any:
    """Call the function at an address with a tuple of arguments, for an integer of 64 bits.

    Of C's functions arguments are integers, and an int that they return is in the low 32 bits; of
    those of `address_of` they are of its types, and an integer is returned: 0 after an exception,
    which numba prints and drops. So functions that return nothing else return OK.
    """

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        unpack: Any = cgutils.unpack_tuple
        unpacked = unpack(builder, values[1])
        kind = ir.FunctionType(ir.IntType(64), [value.type for value in unpacked])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), unpacked)

    return types.int64(address, arguments), generate


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    """Return the pointer to an address, for `numba.carray`."""

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


call: Any = _function
pointer: Any = _pointer


def address_of(function: Any, *kinds: Any) -> int:
    """Return the address of a compiled function for arguments of these types, which it compiles.

    numba calls functions by such addresses itself where they are arguments of others.
    """
    function.compile(kinds)
    compiled = function.overloads[kinds]
    name = compiled.fndesc.llvm_cfunc_wrapper_name
    return int(compiled.library.get_pointer_to_function(name))
