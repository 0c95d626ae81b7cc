"""The contract of a video generator used as a world model's backbone, and which ones there are.

A backbone predicts the velocity of rectified flow for every latent frame, with its own diffusion
time per frame (clean history is at time 0), and takes one additive modulation per frame and block.
It registers itself, here or in your own package; importing the file is enough:

    register_backbone(MyConfig, My, published={"MyTransformer": from_published})

Not here: any backbone (a folder each: config, layers, model, published layout).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from colaworld.config import Checked, ConfigError
from colaworld.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from colaworld.models.backbones.weights import Layout
    from colaworld.models.layers.kv_cache import KVCache

Text = Literal["removed", "null", "full"]


class BackboneConfig(Checked, at="model.backbone."):
    """What the configuration of every backbone says: a frozen dataclass with a default everywhere.

    Each is a field or a property.
    """

    kind: str
    """Its name, a `Literal` field; saved configurations carry it."""
    width: int
    """Channels of a token."""
    heads: int
    """Attention heads; each takes an even share of the width. 1 where there is no attention."""
    patch: tuple[int, int, int]
    """Latent frames, rows and columns of one token."""
    in_channels: int
    """Channels of a latent."""
    causal: bool
    """No frame attends to later ones. A cache needs it."""
    text: Text = "removed"
    """Cross-attention to a caption: there is none, it reads the null caption, or the one given. A
    world model has no captions to give."""

    clip_fps: bool = False
    """The video model is told the frame rate of each clip. A run then writes that of its data into a
    field `fps`, for calls that name none: rollouts of its world."""

    identity_keys: ClassVar[tuple[str, ...]] = ()
    """Fields that change the output and no tensor's shape: published weights are refused where
    their config.json says otherwise."""

    @staticmethod
    def kinds() -> tuple[type[BackboneConfig], ...]:
        """The configurations of all registered backbones."""
        return tuple(entry.config for entry in BACKBONES.values())


class Backbone(Protocol):
    """An nn.Module. Latents are [B, C, T, h, w]; times are in [0, 1], 0 = clean and 1 = noise.

    Attention that can run on several kernels lists them (`layers/attention.py`: `HasBackends`) and
    says what a GPU keeps beyond what a CPU does (`KeepsOnGPU`), so that memory planning counts it.
    """

    config: Any  # a BackboneConfig
    width: int
    channels: int
    patch: tuple[int, int, int]  # latent frames, rows and columns of one token
    modulated_blocks: int  # how many blocks take a modulation of [6 * width]
    block_lists: tuple[str, ...]  # attributes, each an nn.ModuleList of blocks without randomness

    def velocity(
        self,
        latents: Tensor,  # [B, C, T, h, w]
        times: Tensor,  # [B, T]
        *,
        modulation: Tensor | None = None,  # [B, T, 1 | modulated_blocks, 6 * width]
        fps: Tensor | float | None = None,  # frames/s of the clips, [B]; None: the config's own
        text: Tensor | None = None,  # [B, L, caption width], only where the config has text
        cache: KVCache | None = None,  # of the frames before these
        store: bool = False,
    ) -> Tensor:
        """Velocity x0 - noise, [B, C, T, h, w] in float32.

        A video model that embeds no frame rate, or holds to one, does not read `fps`.
        With a `cache` the given frames follow those it holds; `store` adds their keys and values.
        Raises ValueError on shapes that do not fit, text where the config has none, and a cache
        where a frame attends to later ones.
        """
        ...

    def new_cache(self) -> KVCache:
        """An empty cache for this backbone. Raises ValueError where it cannot be used exactly."""
        ...

    def layout(self) -> Layout:
        """How the keys of its published weights become those of the module."""
        ...

    def time_shift(self, frames: int, rows: int, columns: int) -> float:
        """r of t' = r t / (1 + (r - 1) t) in its pre-training, for latents of this size."""
        ...


class FromPublished(Protocol):
    """A published config.json -> our configuration. See `published.published_config`."""

    def __call__(
        self, described: Mapping[str, Any], *, text: Text, causal: bool, source: str
    ) -> BackboneConfig: ...


@dataclass(frozen=True)
class Registered:
    """How a kind of backbone is made."""

    config: type[BackboneConfig]
    build: Callable[[Any], Backbone]
    """Its configuration -> the module, with random weights; on the meta device too."""
    published: Mapping[str, FromPublished] = field(default_factory=dict)
    """By the class name that a published config.json carries."""


BACKBONES: Registry[Registered] = Registry("backbone", ConfigError)


def register_backbone(
    config: type[BackboneConfig],
    build: Callable[[Any], Backbone],
    *,
    published: Mapping[str, FromPublished] | None = None,
) -> None:
    """Make the kind `config.kind` known. Raises ConfigError where another has this name."""
    BACKBONES.add(config.kind, Registered(config, build, published or {}))


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of this configuration, with random weights.

    Raises ConfigError on a configuration that nobody registered.
    """
    entry = BACKBONES.get(getattr(config, "kind", ""))
    if entry is None or not isinstance(config, entry.config):
        raise ConfigError(
            f"model.backbone: expected one of {', '.join(BACKBONES)}, got {type(config).__name__}, "
            "which is not registered (register_backbone)"
        )
    return entry.build(config)
