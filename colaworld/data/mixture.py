"""Several data sets in one run, as a person names them: a YAML file, or NAME=PATH:WEIGHT.

    mixture:
      people:                 # the name
        path: /data/people    # relative: to the file's folder
        weight: 5             # relative to the other weights
        fps: 4                # what else a `MixtureSource` takes
      robots: {path: /data/robots, weight: 3, source: lerobot, camera: top}

Imports no torch. Not here: the settings (config.py), who is asked when (loader.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colaworld.config import Checked, ConfigError, load_yaml, shown
from colaworld.data.config import DataConfig, MixtureSource

if TYPE_CHECKING:
    from colaworld.data.loader import ClipLoader

_NAMED = re.compile(r"(?P<name>[A-Za-z][\w-]*)=(?P<path>.+?)(:(?P<weight>[^:/]*))?", re.DOTALL)


@dataclass(frozen=True)
class _File(Checked):
    mixture: dict[str, MixtureSource] = field(default_factory=dict)


def named_data(values: Sequence[str]) -> DataConfig | None:
    """What values of --data mean: a `DataConfig` with nothing but a path or a mixture; None: no values.

    Raises ConfigError that names the file and key, or the value.
    """
    files = [value for value in values if Path(value).suffix in (".yaml", ".yml")]
    sets = [match for value in values if (match := _NAMED.fullmatch(value))]
    if files and len(values) == 1:
        return DataConfig(mixture=read_mixture(Path(files[0])))
    if len(values) == 1 and (not sets or Path(values[0]).exists()):
        return DataConfig(path=Path(values[0]))
    if len(sets) < len(values):
        raise ConfigError(
            "--data: expected one folder, one YAML file, or NAME=PATH:WEIGHT for each of several, got "
            f"{', '.join(map(shown, values))}"
        )
    mixture: dict[str, MixtureSource] = {}
    for match in sets:
        if match["name"] in mixture:
            raise ConfigError(f"--data: the name {match['name']!r} is given twice")
        try:
            weight = float("1" if match["weight"] is None else match["weight"])
            mixture[match["name"]] = MixtureSource(Path(match["path"]), weight)
        except ConfigError as error:
            raise ConfigError(f"--data {match[0]}: {error}") from None
        except ValueError:
            raise ConfigError(
                f"--data {match[0]}: expected a number behind the last colon"
            ) from None
    return DataConfig(mixture=mixture) if mixture else None


def read_mixture(file: Path) -> dict[str, MixtureSource]:
    """The sets of a YAML file by name. Raises ConfigError that names file and key."""
    mixture = load_yaml(file, _File).mixture
    if not mixture:
        raise ConfigError(f"{file}: expected data sets by name under `mixture`, got none")
    return {name: replace(one, path=file.parent / one.path) for name, one in mixture.items()}


def shares_told(loader: ClipLoader, clips_per_update: int) -> list[str]:
    """For a person: a line for each set of a mixture, how often it comes and which episodes it has."""
    lines = []
    for name, share in loader.config.shares().items():
        clips, first = loader.sets[name], loader.first_episode[name]
        epochs = 1000 * clips_per_update * share / clips.count
        lines.append(
            f"{name}: {share:.1%} of the clips (it has {clips.count} of {len(clips.episodes)} "
            f"episodes), {epochs:.3g} epochs in 1000 updates of "
            f"{clips_per_update} clips; its episodes are {first} to "
            f"{first + len(clips.source.episodes) - 1}"
        )
    return lines
