"""One recorded set in every format that is read: the same films in a folder, LeRobot, tars and HDF5.

Made from a LeRobot v3.0 set with a film per episode, whose films are copied byte for byte; HDF5 holds
their decoded frames. Its actions go with them, except into a folder of films, which has none.
Not here: what reading them takes (sources.py). The tests of `colaworld/data/sources` use this, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colaworld.data.sources import open_source

FORMATS = ("lerobot-v3", "lerobot-v2", "video_folder", "webdataset", "hdf5")
_PER_CHUNK = 2  # episodes of a v2.1 chunk, films of a tar: a set has several of each


def pack(v3: Path, root: Path) -> dict[str, Path]:
    """The sets by format, made in `root`. Without the package h5py there is none of HDF5."""
    made = {"lerobot-v3": v3, "lerobot-v2": as_lerobot_v21(v3, root / "lerobot-v2")}
    for name, write in (("video_folder", _as_folder), ("webdataset", _as_tars), ("hdf5", _as_hdf5)):
        with contextlib.suppress(ModuleNotFoundError):
            write(v3, root / name)
            made[name] = root / name
    return made


def as_lerobot_v21(v3: Path, path: Path) -> Path:
    """The set as LeRobot v2.1 lays it out: a film and a table of rows per episode."""
    info = json.loads((v3 / "meta/info.json").read_text())
    tables = [pq.read_table(file) for file in sorted(v3.glob("data/*/*.parquet"))]
    films, rows = _films(v3), pa.concat_tables(tables)
    (camera,) = (k for k, v in info["features"].items() if v["dtype"] == "video")
    (task,) = pq.read_table(v3 / "meta/tasks.parquet")["task"].to_pylist()
    stats = json.loads((v3 / "meta/stats.json").read_text())
    lines: dict[str, list[dict]] = {"episodes": [], "episodes_stats": []}
    for i, film in enumerate(films):
        table = rows.filter(pc.equal(rows["episode_index"], i))
        chunk = f"chunk-{i // _PER_CHUNK:03d}"
        data = path / f"data/{chunk}/episode_{i:06d}.parquet"
        video = path / f"videos/{chunk}/{camera}/episode_{i:06d}.mp4"
        for file in (data, video):
            file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data, write_page_checksum=True)
        shutil.copy(film, video)
        lines["episodes"].append({"episode_index": i, "tasks": [task], "length": len(table)})
        lines["episodes_stats"].append({"episode_index": i, "stats": stats})
    info |= {
        "codebase_version": "v2.1",
        "total_videos": len(films),
        "total_chunks": -(-len(films) // _PER_CHUNK),
        "chunks_size": _PER_CHUNK,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (path / "meta").mkdir()
    (path / "meta/info.json").write_text(json.dumps(info))
    lines["tasks"] = [{"task_index": 0, "task": task}]
    for name, of_name in lines.items():
        (path / f"meta/{name}.jsonl").write_text("".join(f"{json.dumps(v)}\n" for v in of_name))
    return path


def _films(v3: Path) -> list[Path]:
    films, episodes = sorted(v3.rglob("*.mp4")), len(open_source(v3).episodes)
    if len(films) != episodes:
        raise ValueError(f"{v3}: expected a film per episode, got {len(films)} for {episodes}")
    return films


def _as_folder(v3: Path, path: Path) -> None:
    path.mkdir()
    for i, film in enumerate(_films(v3)):
        shutil.copy(film, path / f"{i:06d}.mp4")


def _as_tars(v3: Path, path: Path) -> None:
    path.mkdir()
    source = open_source(v3)
    for i, film in enumerate(_films(v3)):
        with tarfile.open(path / f"{i // _PER_CHUNK:06d}.tar", "a") as tar:
            tar.add(film, f"{i:06d}.mp4")
            content = json.dumps({"action": _actions(source, i).tolist()}).encode()
            member = tarfile.TarInfo(f"{i:06d}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _as_hdf5(v3: Path, path: Path) -> None:
    import h5py

    path.mkdir()
    source = open_source(v3)
    with h5py.File(path / "task.hdf5", "w") as file:
        arguments = {"env_kwargs": {"control_freq": source.episodes[0].fps}}
        file.create_group("data").attrs["env_args"] = json.dumps(arguments)
        for e in source.episodes:
            demo = file.create_group(f"data/demo_{e.index}")
            demo["obs/main_image"] = source.read(e.index, range(e.frames))
            demo["actions"] = _actions(source, e.index)


def _actions(source, episode: int):
    actions = source.actions(episode)
    if actions is None:
        raise ValueError(f"episode {episode}: expected a set with actions, got none")
    return actions
