"""A world from either kind of folder, a run's or an export's, and the frames it was trained on.

    load.py, pretrained.py    how a run is read, and an export
    worlds.py                 either: tells which a folder is, without torch, then reads it
    latents.py                these, and models of others, as what infers latent actions

Not here: how each is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colaworld.config import ConfigError, from_dict
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.files import read_json
from colaworld.models.hub import PIPELINE, local_folder
from colaworld.runs.config import RunConfig, read_config

if TYPE_CHECKING:
    from colaworld.models.world import World

_KEPT = ("height", "width", "crop", "stride", "fps")  # of an export's frames


def is_run(path: Path) -> bool:
    """Whether a run's folder is there."""
    return (path / "config.yaml").is_file()


def is_world(path: Path) -> bool:
    """Whether one of ours is there: a run, its weights/, or an export."""
    return is_run(path) or bool(_described(path).keys() & {"colaworld", "global_step"})


def find(source: str | Path) -> Path:
    """Where a folder or file is on this machine; a hub's is fetched once. ConfigError: nowhere."""
    try:
        return local_folder(str(source), patterns=PIPELINE)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def world_at(path: Path, *, kind: str = "auto") -> WorldFolder | None:
    """What is said of the world in a folder; None where `kind` names a model of others, or one is there.

    Raises ConfigError where `kind` is "colaworld" and no world is there, or no weights of any are.
    """
    if kind == "colaworld" or (kind == "auto" and is_world(path)):
        return WorldFolder.of(path)
    if path.is_dir() and not any(path.glob("*.safetensors*")):
        raise ConfigError(
            f"{path} is neither a run folder (no config.yaml), nor an exported world (no config.json that "
            "says so), nor a published model (no .safetensors)"
        )
    return None


def _described(path: Path) -> dict[str, Any]:
    """config.json of a folder; empty where there is none."""
    file = path / "config.json"
    described = read_json(file) if file.is_file() else {}
    return described if isinstance(described, dict) else {}


@dataclass(frozen=True)
class WorldFolder:
    """What a folder says of the world in it."""

    path: Path
    exported: bool
    """Read as it was exported, with no data beside it; the weights/ of a run is, too."""
    recipe: str
    data: DataConfig
    """A run's own; of an export the size, crop and rate of its frames, and no data set."""
    estimates: bool
    """Whether it has a head that turns latent actions into real ones (`colaworld adapt`)."""

    @classmethod
    def of(cls, path: Path) -> WorldFolder:
        """Raises ConfigError where it is neither."""
        if not path.exists():
            raise ConfigError(f"{path}: no such folder")
        described = {} if is_run(path) else _described(path)
        inner = described.get("config")  # of a run's weights/
        if is_run(path) or isinstance(inner, dict):
            where = f"{path / 'config.json'}: config"
            if is_run(path):
                config = read_config(path)
            else:  # of this version, else reading the weights refuses it
                inner = {k: v for k, v in inner.items() if k != "config_version"}
                config = from_dict(RunConfig, inner, where=where)
            head = "action_head" in config.parts() and config.action_contract is not None
            return cls(path, not is_run(path), config.recipe, config.data, head)
        if not isinstance(described.get("frames"), dict):
            raise ConfigError(
                f"{path} is neither a run folder (it has no config.yaml) nor a world written by "
                "`colaworld export` (it has no config.json that says so)"
            )
        kept = {k: v for k, v in described["frames"].items() if k in _KEPT}
        data = from_dict(DataConfig, kept, where=f"{path / 'config.json'}: frames")
        model = described.get("model")
        parts = model.get("parts") if isinstance(model, dict) else None
        head = "action_head" in (parts or ()) and described.get("action_contract") is not None
        return cls(path, True, str(described.get("recipe")), data, head)

    def load(self, *, device: str = "cpu", tokenizer: str | None = None) -> World:
        """The world; `tokenizer`: where an export's is, if it did not come along.

        Raises ConfigError, WeightsError or FileError where it has none or is not as it was written.
        """
        from colaworld.models.world import World
        from colaworld.runs.load import load_world
        from colaworld.runs.pretrained import from_pretrained

        if not self.exported:
            return load_world(self.path, device=device)[0]
        loaded = from_pretrained(self.path, device=device, tokenizer=tokenizer)
        if not isinstance(loaded, World):
            raise ConfigError(f"{self.path} is a video model, which infers no latent actions")
        return loaded

    def trained_rate(self) -> float | None:
        """Frames per second of the clips of its training; None: not known."""
        from colaworld.runs.load import trained_rate

        if is_run(self.path):
            return trained_rate(read_config(self.path))
        frames = _described(self.path).get("frames")
        rate = frames.get("rate") if isinstance(frames, dict) else None
        return rate if isinstance(rate, int | float) and rate > 0 else self.data.fps

    def trained_size(self) -> tuple[int, int] | None:
        """Height and width of the frames of its training, also where it took them as recorded: by its
        configuration, its evaluation, or its data set if that is there still. None: not known."""
        from colaworld.data.clips import ClipSet
        from colaworld.runs.load import frame_size

        if (said := frame_size(self.data)) is not None or self.exported:
            return said
        file = self.path / "evaluation.json"
        counts = read_json(file).get("counts", {}) if file.is_file() else {}
        if {"height", "width"} <= counts.keys():
            return counts["height"], counts["width"]
        try:
            clips = ClipSet(replace(next(iter(self.data.sets().values())), frames_per_clip=1))
        except DataError:
            return None
        return clips.height, clips.width
