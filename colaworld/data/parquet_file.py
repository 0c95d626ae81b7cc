"""Parquet files that may be damaged: read without threads, with every page checksum that is there.

Not here: which columns a file must have (sources/lerobot_meta.py, latent_cache.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from colaworld.data.errors import DataError


def read_parquet(
    file: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    groups: Sequence[int] | None = None,
) -> pa.Table:
    """Columns of a parquet file (or of some of its row groups), its page checksums tried.

    Raises DataError, which names both. On damaged files `pyarrow.parquet.read_table` can hang, and
    what `metadata` says of a column's chunk can end the process: neither is used.
    """
    with opened_parquet(file, columns) as opened:
        there = opened.schema_arrow.names
        if missing := [repr(name) for name in columns if name not in there]:
            raise DataError(f"{file}: lacks the columns {', '.join(missing)}")
        wanted = [*columns, *(name for name in optional if name in there)]
        every = range(opened.num_row_groups) if groups is None else groups
        return opened.read_row_groups(every, columns=wanted, use_threads=False).select(wanted)


@contextlib.contextmanager
def opened_parquet(file: Path, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    """A parquet file to read `columns` from; whatever fails within becomes a DataError with both."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            yield opened
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: columns {', '.join(columns)} cannot be read: {error}") from error
