"""A world from either kind of folder, a run's or an export's, and the frames it was trained on.

Imports no torch until a world is read. Not here: how each is read (load.py, pretrained.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colaworld.config import ConfigError, from_dict
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.files import read_json
from colaworld.runs.config import read_config

if TYPE_CHECKING:
    from colaworld.models.world import World

_KEPT = ("height", "width", "crop", "stride", "fps")  # of an export's frames


@dataclass(frozen=True)
class WorldFolder:
    """What a folder says of the world in it."""

    path: Path
    exported: bool
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
        if (path / "config.yaml").is_file():
            config = read_config(path)
            head = "action_head" in config.parts() and config.action_contract is not None
            return cls(path, False, config.recipe, config.data, head)
        file = path / "config.json"
        described = read_json(file) if file.is_file() else {}
        if not isinstance(described, dict) or not isinstance(described.get("frames"), dict):
            raise ConfigError(
                f"{path} is neither a run folder (it has no config.yaml) nor a world written by "
                "`colaworld export` (it has no config.json that says so)"
            )
        kept = {k: v for k, v in described["frames"].items() if k in _KEPT}
        data = from_dict(DataConfig, kept, where=f"{file}: frames")
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
            raise ConfigError(f"{self.path} is a video model without latent actions")
        return loaded

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
