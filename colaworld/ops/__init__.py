"""The ops: public functions, the choice of an implementation, and nothing else.

This is the only room that loads compiled code. `explain(op, tensor)` says what would run and why
the others refuse; `force(name)` and the variable COLAWORLD_OPS choose one implementation.
"""

from colaworld.ops._dispatch import NoImplementationError, Verdict, explain, force
from colaworld.ops.adaln import adaln
from colaworld.ops.st_attention import st_attention
from colaworld.ops.vector_quantize import vector_quantize

__all__ = [
    "NoImplementationError",
    "Verdict",
    "adaln",
    "explain",
    "force",
    "st_attention",
    "vector_quantize",
]
