"""The instructions by family; importing this package registers them all."""

from ptx.instructions import (  # noqa: F401
    arithmetic,
    barriers,
    bits,
    control,
    convert,
    copies,
    matrices,
    memory,
    mma,
    warp,
    wgmma,
)
