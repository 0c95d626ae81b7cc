"""Latent action models of others, by layout: what they infer is compared with ours, or labels videos.

    model = load_published(folder_or_file)              # the layout is recognised by its keys
    model.infer_actions(frames)                         # contracts.LatentActionModel

A layout of your own, in one file (`COLAWORLD_IMPORT`):

    register_latent_action_model("mine", recognise=lambda shapes: "my.key" in shapes, load=load_mine)

Only safetensors are read. A file is imported when its layout is loaded. Not here: training any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from colaworld.registry import Later, Registry

if TYPE_CHECKING:
    import torch

    from colaworld.contracts import LatentActionModel

Shapes: TypeAlias = Mapping[str, "list[int]"]  # of stored tensors, by key


class Load(Protocol):
    """(a safetensors file, or a folder with one or with shards; where it goes) -> the model, which
    evaluates. Raises WeightsError on keys that are missing, left over or of another shape."""

    def __call__(self, path: Path, *, device: torch.device | str) -> LatentActionModel: ...


@dataclass(frozen=True)
class PublishedLayout:
    """A layout in which others publish their latent action models."""

    recognise: Callable[[Shapes], bool]
    """Are these its keys and shapes? Of two layouts at most one may say so."""
    load: Load


PUBLISHED: Registry[PublishedLayout] = Registry(
    "layout of latent action models", ValueError, reserved=("auto", "colaworld")
)


def register_latent_action_model(
    kind: str, *, recognise: Callable[[Shapes], bool], load: Load
) -> None:
    """Make a layout known. Raises ValueError on a name that is taken."""
    PUBLISHED.add(kind, PublishedLayout(recognise, load))


def layout_of(path: Path, *, kind: str = "auto") -> str:
    """The layout of a latent action model of others.

    Args:
        path: a safetensors file, or a folder with one or with shards and their index.
        kind: the layout; "auto": the one that recognises the keys.

    Raises WeightsError on files that cannot be read, and on keys that no layout or several recognise;
    ValueError on an unknown kind.
    """
    from colaworld.models.backbones.weights import WeightsError, files_of, header

    if kind != "auto":
        PUBLISHED[kind]  # raises where there is none of this name
        return kind
    shapes = {key: shape for file in files_of(path) for key, (shape, _) in header(file).items()}
    found = [name for name, layout in PUBLISHED.items() if layout.recognise(shapes)]
    if len(found) == 1:
        return found[0]
    why = (
        f"{' and '.join(found)} both recognise its keys"
        if found
        else f"no layout recognises its {len(shapes)} keys ({', '.join(list(shapes)[:3])}, ...)"
    )
    raise WeightsError(
        f"{path}: {why}; known layouts: {', '.join(PUBLISHED)}. Name the one it is in (kind)"
    )


def load_published(
    path: Path, *, kind: str = "auto", device: torch.device | str = "cpu"
) -> LatentActionModel:
    """A latent action model of others, of `layout_of(path, kind=kind)`.

    Raises WeightsError, ValueError as `layout_of` and the layout do.
    """
    return PUBLISHED[layout_of(path, kind=kind)].load(path, device=device)


for _kind in ("adaworld", "dreamdojo"):
    register_latent_action_model(
        _kind,
        recognise=Later(f"{__name__}.adaworld:recognise_{_kind}"),
        load=Later(f"{__name__}.adaworld:load_{_kind}"),
    )
register_latent_action_model(
    "villa-x",
    recognise=Later(f"{__name__}.villa_x:recognise_villa_x"),
    load=Later(f"{__name__}.villa_x:load_villa_x"),
)
