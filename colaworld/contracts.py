"""What flows between the rooms: small frozen dataclasses that check themselves and print their shapes.

Not here: how any of these is made (data, models) or used (training, evaluation).
Shape legend: B clips, T frames, H W pixels, N tokens per action, d token width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:  # a configuration reads this file, and imports no torch
    import torch
    from torch import Tensor, nn

# Parameters and their rows [M] int64 that were set anew outside of the optimizer (re-seeded codes):
# what it remembers of them is void. From the quantizers through an objective to the training loop.
ResetRows: TypeAlias = "list[tuple[nn.Parameter, Tensor]]"

# Who computes attention; each is explained in ops/attention_backends.py.
AttentionBackend = Literal["auto", "fused", "sdpa", "cudnn", "flex", "flash", "flash3", "flash4"]


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ActionSpec:
    """What a real action column holds. Evaluation reads real actions, and a phase whose objective asks for them.

    `kind` "discrete": integer class ids in [0, size); "continuous": float vectors of length size.
    Empty is not known, and never a default.
    """

    column: str
    """Name of the column."""
    kind: Literal["discrete", "continuous"]
    """Classes, or numbers."""
    size: int
    """How many classes, or numbers in a row."""
    names: tuple[str, ...] = ()
    """One per class (discrete) or per channel (continuous)."""
    units: tuple[str, ...] = ()
    """Continuous: one per channel, as "rad", "m", "px"; "" within them: not known."""
    mode: Literal["absolute", "relative", ""] = ""
    """Continuous: a place to be at, or a change from where it is."""
    frame: str = ""
    """Continuous: what the numbers are measured in, as "world", "base", "gripper", "joints"."""

    def __post_init__(self) -> None:
        _expect(
            self.kind in ("discrete", "continuous"),
            f"ActionSpec.kind: expected 'discrete' or 'continuous', got {self.kind!r}",
        )
        _expect(self.size >= 1, f"ActionSpec.size: expected >= 1, got {self.size}")
        for name in ("names", "units"):
            given = getattr(self, name)
            _expect(
                isinstance(given, tuple) and len(given) in (0, self.size),
                f"ActionSpec.{name}: expected 0 or {self.size} {name}, got {given!r:.80}",
            )
        _expect(
            self.mode in ("absolute", "relative", ""),
            f"ActionSpec.mode: expected 'absolute', 'relative' or '' (not known), got {self.mode!r}",
        )
        _expect(
            self.kind == "continuous" or not (self.units or self.mode or self.frame),
            f"ActionSpec: classes have no units, mode or frame, got {self.units}, {self.mode!r}, "
            f"{self.frame!r}",
        )

    def every(self, stride: int) -> ActionSpec:
        """What a step of clips holds that take every `stride`-th frame: all actions in between, one
        after another. Classes are those of stride 1."""
        if stride == 1 or self.kind == "discrete":
            return self
        names = tuple(f"{name}+{step}" for step in range(stride) for name in self.names)
        return replace(self, size=self.size * stride, names=names, units=self.units * stride)


@dataclass(frozen=True, repr=False)
class ClipBatch:
    """A batch of clips. Frames stay uint8 until they are on the device.

    `actions[b, t]` is the action that leads from frame t to frame t + 1.
    """

    frames: Tensor  # [B, T, 3, H, W] uint8, RGB
    episode: Tensor  # [B] int64: which episode each clip was cut from
    start: Tensor  # [B] int64: index of the clip's first frame within its episode
    actions: Tensor | None = None  # [B, T-1] int64 (discrete) | [B, T-1, A] float32 (continuous)
    latents: Tensor | None = None  # [B, C, T', h, w] float: what a tokenizer made of the frames
    fps: Tensor | None = None  # [B] float32: frames per second of each clip; None: not known

    def __post_init__(self) -> None:
        import torch

        f = self.frames
        _expect(
            f.ndim == 5 and f.shape[2] == 3 and f.dtype == torch.uint8,
            f"ClipBatch.frames: expected uint8 [B, T, 3, H, W], got {f.dtype} {tuple(f.shape)}",
        )
        for name in ("episode", "start"):
            value = getattr(self, name)
            _expect(
                value.shape == f.shape[:1] and value.dtype == torch.int64,
                f"ClipBatch.{name}: expected int64 [{f.shape[0]}], "
                f"got {value.dtype} {tuple(value.shape)}",
            )
        if self.actions is not None:
            _expect(
                self.actions.shape[:2] == (f.shape[0], f.shape[1] - 1),
                f"ClipBatch.actions: expected [{f.shape[0]}, {f.shape[1] - 1}, ...] "
                f"(one per transition), got {tuple(self.actions.shape)}",
            )
        z = self.latents
        if z is not None:
            _expect(
                z.ndim == 5 and z.shape[0] == f.shape[0] and 1 <= z.shape[2] <= f.shape[1],
                f"ClipBatch.latents: expected [{f.shape[0]}, C, T', h, w] with 1 <= T' <= "
                f"{f.shape[1]}, got {tuple(z.shape)}",
            )
            _expect(
                z.is_floating_point(), f"ClipBatch.latents: expected a float dtype, got {z.dtype}"
            )

        _expect(
            self.fps is None or self.fps.shape == f.shape[:1],
            f"ClipBatch.fps: expected [{f.shape[0]}], got "
            f"{None if self.fps is None else tuple(self.fps.shape)}",
        )

    def __repr__(self) -> str:
        shapes = {
            name: None if value is None else list(value.shape)
            for name, value in (("frames", self.frames), ("actions", self.actions))
        }
        if self.latents is not None:
            shapes["latents"] = list(self.latents.shape)
        return f"ClipBatch({', '.join(f'{name}={shape}' for name, shape in shapes.items())})"

    def __len__(self) -> int:
        return self.frames.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ClipBatch:
        """The same batch with every tensor on `device`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return replace(
            self,
            frames=move(self.frames),
            episode=move(self.episode),
            start=move(self.start),
            actions=None if self.actions is None else move(self.actions),
            latents=None if self.latents is None else move(self.latents),
            fps=None if self.fps is None else move(self.fps),
        )


@dataclass(frozen=True, repr=False)
class LatentActions:
    """Latent actions of a batch of clips: entry t leads from frame t to frame t + 1."""

    codes: Tensor  # [B, T-1, N, d] what the world model is conditioned on
    indices: Tensor | None = None  # [B, T-1, N] int64 entries of the codebook; None if continuous

    def __post_init__(self) -> None:
        _expect(
            self.codes.ndim == 4,
            f"LatentActions.codes: expected [B, T-1, N, d], got {tuple(self.codes.shape)}",
        )
        if self.indices is not None:
            import torch

            _expect(
                self.indices.shape == self.codes.shape[:3] and self.indices.dtype == torch.int64,
                f"LatentActions.indices: expected int64 {list(self.codes.shape[:3])}, "
                f"got {self.indices.dtype} {tuple(self.indices.shape)}",
            )

    def __repr__(self) -> str:
        indices = None if self.indices is None else list(self.indices.shape)
        return f"LatentActions(codes={list(self.codes.shape)}, indices={indices})"


@dataclass(frozen=True, repr=False)
class Rollout:
    """Generated video: the given history followed by the predicted frames."""

    frames: Tensor  # [B, T, 3, H, W] float in [0, 1]
    history: int  # how many of the first frames were given, not generated

    def __post_init__(self) -> None:
        f = self.frames
        _expect(
            f.ndim == 5 and f.shape[2] == 3 and f.is_floating_point(),
            f"Rollout.frames: expected float [B, T, 3, H, W], got {f.dtype} {tuple(f.shape)}",
        )
        _expect(
            1 <= self.history <= f.shape[1],
            f"Rollout.history: expected 1..{f.shape[1]}, got {self.history}",
        )

    def __repr__(self) -> str:
        return f"Rollout(frames={list(self.frames.shape)}, history={self.history})"

    @property
    def generated(self) -> Tensor:
        """The predicted frames only, [B, T - history, 3, H, W]."""
        return self.frames[:, self.history :]


def to_float(frames: Tensor, device: torch.device | str | None = None) -> Tensor:
    """uint8 frames -> float32 in [0, 1] on `device` (None: where they are)."""
    import torch

    _expect(frames.dtype == torch.uint8, f"to_float: expected uint8 frames, got {frames.dtype}")
    return (frames if device is None else frames.to(device)).float().div_(255)


@runtime_checkable
class LatentActionModel(Protocol):
    """What reads latent actions off video: a world, or somebody else's published model. Called without
    gradients."""

    codebook_size: int | None
    """K, or None when latent actions are continuous."""
    tokens: int
    """N, tokens per action."""
    dim: int
    """d, width of a token."""
    frame_size: tuple[int, int] | None
    """Height and width of the frames it takes; None: any, it crops and resizes them itself."""
    window: int
    """Frames that decide an action at most, the last two of which it lies between."""

    def infer_actions(self, frames: Tensor) -> LatentActions:
        """frames [B, T, 3, H, W] float in [0, 1] -> the latent actions of its T-1 transitions."""
        ...


@runtime_checkable
class WorldProtocol(LatentActionModel, Protocol):
    """A world that latent actions steer, with no model class: `models.world.World`, or a scene whose
    answer is known. Legend: B clips, h context frames, n more, N tokens per action, d token width.

    Evaluation calls it without gradients. Whatever is random inside `rollout` must come from
    `generator` alone: evaluation compares rollouts under different actions and *equal* noise. It passes
    a `rng.ClipGenerator`: drawn by `rng.draw(..., large=True)`, a clip's noise is the same in every batch.

    It may also have `rollout_candidates` (many ways on from one start), `stride` (pixel frames that
    a rollout makes at once; 1 without it) and `null_action` ([N, d] codes of an unknown action, or None:
    "no action" is then left out). Each means what it does in `World`.
    """

    def rollout(self, history: Tensor, codes: Tensor, *, generator: torch.Generator) -> Rollout:
        """Roll a history forward.

        Args:
            history: [B, h, 3, H, W] float in [0, 1].
            codes: [B, h-1+n, N, d]; codes[:, t] leads from frame t to frame t+1, so the first
                h-1 belong to the history.

        Returns:
            A Rollout of h+n frames, the first h of them the history.
        """
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook entries: indices [..., N] -> codes [..., N, d]. Unused when continuous."""
        ...
