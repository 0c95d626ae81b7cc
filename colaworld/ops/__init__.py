"""The ops: public functions, the choice of an implementation, and nothing else.

This is the only room that loads compiled code. `explain(op, tensor)` says what would run and why
the others refuse; `force(name)` and the variable COLAWORLD_OPS choose one implementation;
`build_info()` says what was compiled, `why_not_compiled()` why nothing was, `cuda_kernels()` what a launch
of each CUDA kernel takes.
"""

from colaworld.ops._dispatch import (
    Explanation,
    NoImplementationError,
    examples,
    explain,
    force,
    implementations,
    names,
)
from colaworld.ops._native import build_info, cuda_kernels
from colaworld.ops._native import reason as why_not_compiled
from colaworld.ops.adaln import adaln
from colaworld.ops.attention_backends import BACKENDS as ATTENTION_BACKENDS
from colaworld.ops.attention_backends import Backend as AttentionBackend
from colaworld.ops.attention_backends import BackendUnavailableError
from colaworld.ops.attention_backends import missing as attention_backend_missing
from colaworld.ops.block_causal import block_causal_attention
from colaworld.ops.code_statistics import code_statistics
from colaworld.ops.gelu import gelu
from colaworld.ops.qk_norm_rope import qk_norm_rope
from colaworld.ops.qkv_norm_rope import qkv_norm_rope
from colaworld.ops.st_attention import st_attention
from colaworld.ops.update_codebook import update_codebook
from colaworld.ops.vector_quantize import vector_quantize

__all__ = [
    "ATTENTION_BACKENDS",
    "AttentionBackend",
    "BackendUnavailableError",
    "Explanation",
    "NoImplementationError",
    "adaln",
    "attention_backend_missing",
    "block_causal_attention",
    "build_info",
    "code_statistics",
    "cuda_kernels",
    "examples",
    "explain",
    "force",
    "gelu",
    "implementations",
    "names",
    "qk_norm_rope",
    "qkv_norm_rope",
    "st_attention",
    "update_codebook",
    "vector_quantize",
    "why_not_compiled",
]
