"""A LeRobot set of many episodes in few films, and what opening it takes: for test_large_set.py.

    large_set.py write FOLDER EPISODES     films of 1000 episodes each, all copies of one
    large_set.py open FOLDER               seconds and bytes as JSON

Not here: any assertion.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FRAMES, EACH, FPS, SIDE, CAMERA = 10, 1000, 10, 16, "observation.images.main"


def _film(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height = stream.width = SIDE
        stream.pix_fmt, stream.options = "yuv420p", {"g": "100", "bf": "0", "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(FRAMES * EACH):
            values = np.full((SIDE, SIDE, 3), number % 200, np.uint8)
            values[: SIDE // 2] = 255 - values[: SIDE // 2]
            picture = av.VideoFrame.from_ndarray(values, "rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write(root: Path, episodes: int) -> None:
    first = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    _film(first)
    for number in range(1, episodes // EACH):
        os.link(first, first.with_name(f"file-{number:03d}.mp4"))
    index = np.arange(episodes)
    start = index % EACH * FRAMES / FPS
    table = {
        "episode_index": index,
        "length": np.full(episodes, FRAMES),
        "dataset_from_index": index * FRAMES,
        "dataset_to_index": (index + 1) * FRAMES,
        "data/chunk_index": np.zeros(episodes, np.int64),
        "data/file_index": index // EACH,
        f"videos/{CAMERA}/chunk_index": np.zeros(episodes, np.int64),
        f"videos/{CAMERA}/file_index": index // EACH,
        f"videos/{CAMERA}/from_timestamp": start,
        f"videos/{CAMERA}/to_timestamp": start + FRAMES / FPS,
    }
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(table), path)
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": episodes * FRAMES,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {CAMERA: {"dtype": "video", "shape": [SIDE, SIDE, 3], "names": None}},
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def open_it(root: Path) -> None:
    from colaworld.data.config import DataConfig
    from colaworld.data.loader import ClipLoader

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, began = resident(), time.perf_counter()
    loader = ClipLoader(
        DataConfig(path=root, frames_per_clip=4, cache_mb=64), batch_size=16, seed=0
    )
    opened = time.perf_counter()
    next(loader)
    first = time.perf_counter()
    for _ in range(20):
        next(loader)
    loader.close()
    found = {
        "episodes": len(loader.clips.episodes),
        "clips": len(loader),
        "open_seconds": opened - began,
        "first_batch_seconds": first - opened,
        "grown": resident() - before,
        "resident": resident(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        open_it(Path(sys.argv[2]))
