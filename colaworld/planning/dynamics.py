"""A world as dynamics to plan in: candidates are forks of one state, whose past is cached once.

Where the cost reads latents nothing is decoded, unless an adapter looks at the frame. Not here: which codes
are planned (search.py), what real actions stand for (`World.encode_actions`, action_map.py).

Shape legend: B environments, n candidates, h actions of a plan, r the tokenizer's stride in time, N tokens, d token width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from colaworld.models.rollout import RolloutState
from colaworld.models.world import World
from colaworld.planning.contracts import Reads, Seen
from colaworld.planning.exact import SimulatorDynamics
from colaworld.planning.spaces import Continuous, Discrete, Space


@dataclass(frozen=True)
class WorldState:
    """Where candidates fork off."""

    rollout: RolloutState
    frames: Tensor  # [B, c, 3, H, W], those it began with, the current one last
    simulated: Sequence[Any] = ()  # the true simulator's, where it is asked


class WorldDynamics:
    """Rolls a `World` under codes, or under real actions where it was adapted to them.

    All candidates of a decision, round after round, start from the same noise: they differ by their
    actions alone.

    Args:
        world: what is rolled; its sampler says how (`SamplerConfig.planning()` is the paper's).
        gives: "latents" leaves decoding out.
        space: "latent": actions are entries of the codebook; "real": the robot's own.
        among: int64 [M, N], combinations of codes that are planned alone; an action is the number of one.

    Raises ValueError where there is no codebook, or no real actions are known.
    """

    def __init__(
        self,
        world: World,
        *,
        gives: Literal["frames", "latents"] = "frames",
        space: Literal["latent", "real"] = "latent",
        among: Tensor | None = None,
    ) -> None:
        self.space: Space = latent_space(world) if space == "latent" else real_space(world)
        self.world, self.gives, self.stride = world, _reads(gives), world.stride
        self._real, self._among = space == "real", among
        self._looks = self._real and world.model.adapter.looks
        if among is not None:
            self.space = Discrete(len(among))

    def begin(self, seen: Seen) -> WorldState:
        """The real frames, and between them the actions that the world reads off them.

        Of the c frames as many are used as are whole latent frames, the current one last.
        """
        stride = self.world.stride
        used = 1 + stride * ((seen.frames.shape[1] - 1) // stride)
        frames = seen.frames[:, -used:]
        codes = None if used == 1 else self.world.infer_actions(frames).codes
        rollout = self.world.begin(frames, codes, generator=seen.generator)
        return WorldState(rollout, frames)

    @torch.no_grad()
    def roll(self, state: WorldState, actions: Tensor) -> Tensor:
        """actions [B, n, h, A] -> frames [B, n, h, 3, H, W] or latents [B, n, h / r, C, h', w'].

        Raises ValueError on h that is no multiple of the tokenizer's stride r.
        """
        return self._roll(state, actions, self.gives)

    @torch.no_grad()
    def imagine(self, state: WorldState, actions: Tensor) -> Tensor | None:
        return self._roll(state, actions[:, None], "frames")[:, 0]

    def _roll(self, state: WorldState, actions: Tensor, gives: Reads) -> Tensor:
        stride = self.world.stride
        if actions.shape[2] % stride:
            raise ValueError(
                f"mpc.horizon: this world makes {stride} frames at once; expected a multiple of {stride} "
                f"actions, got {actions.shape[2]}"
            )
        B, n = actions.shape[:2]
        fork, made = state.rollout.fork(n), []
        codes_at, latest = self._coded(state, actions), None
        if self._looks:
            latest = state.frames[:, -1:].repeat_interleave(n, dim=0)
        for at in range(0, actions.shape[2], stride):
            latents = fork.advance(codes_at(slice(at, at + stride), latest))
            if self._looks:
                latest = fork.decode(latents)[:, -1:]
            made.append(latents)
        latents = torch.cat(made, dim=2)
        if gives == "latents":
            return latents.transpose(1, 2).unflatten(0, (B, n))
        return fork.decode(latents).unflatten(0, (B, n))

    def _coded(
        self, state: WorldState, actions: Tensor
    ) -> Callable[[slice, Tensor | None], Tensor]:
        """Of actions [B, n, h, A] what gives codes [B n, r, N, d] of r steps, and of the latest frame [B n, 1, 3, H, W]
        where an adapter looks at it."""
        rows = actions.flatten(0, 1)
        return lambda steps, latest: self._codes(rows[:, steps], latest)

    def _codes(self, actions: Tensor, latest: Tensor | None) -> Tensor:
        """Codes [rows, r, N, d] of actions [rows, r, A]."""
        if self._among is not None:
            actions = self._among.to(actions.device)[actions[..., 0]]
        if not self._real:
            return self.world.lookup(actions)
        if isinstance(self.space, Discrete):
            actions = actions[..., 0]
        frames = None if latest is None else latest.expand(-1, actions.shape[1], -1, -1, -1)
        return self.world.encode_actions(actions, frames).codes


class InferredDynamics(WorldDynamics):
    """An adapted world under the codes that it reads off what truly happens: each candidate is played in the true
    simulator as well, and the inverse dynamics model sees those frames. An adapter is trained to say these codes, so
    this is the world with an adapter that makes no mistake.

    Args:
        simulator: gives frames of all steps, under the actions of this space.
    """

    def __init__(
        self,
        world: World,
        simulator: SimulatorDynamics,
        *,
        gives: Literal["frames", "latents"] = "frames",
    ) -> None:
        super().__init__(world, gives=gives, space="real")
        self._simulator, self._looks = simulator, False

    def begin(self, seen: Seen) -> WorldState:
        return replace(super().begin(seen), simulated=self._simulator.begin(seen))

    def _coded(
        self, state: WorldState, actions: Tensor
    ) -> Callable[[slice, Tensor | None], Tensor]:
        films = self._simulator.roll(state.simulated, actions).flatten(0, 1).to(state.frames)
        before = state.frames.repeat_interleave(actions.shape[1], dim=0)
        inferred = self.world.infer_actions(torch.cat([before, films], dim=1)).codes
        codes = inferred[:, before.shape[1] - 1 :]
        return lambda steps, latest: codes[:, steps]


def latent_space(world: World) -> Discrete:
    """The codes of a world. ValueError where its latent actions are continuous."""
    if world.codebook_size is None:
        raise ValueError(
            "planning: the latent actions of this run are continuous: there are no codes to plan; use "
            "--space real with an adapted run"
        )
    return Discrete(world.codebook_size, world.tokens)


def real_space(world: World) -> Space:
    """The real actions of an adapted world: its classes, or numbers within what was recorded.

    Raises ValueError where it knows none, or not their range.
    """
    contract = world.actions
    if contract is None or not hasattr(world.model, "adapter"):
        raise ValueError(
            "planning: this run knows no real actions: colaworld adapt RUN --data SRC teaches it a robot's own"
        )
    if contract.kind == "discrete":
        return Discrete(contract.size)
    known = contract.normaliser
    if not known.low:
        raise ValueError("planning: this run does not know the range of its actions; adapt it anew")
    return Continuous(known.low, known.high)


def _reads(gives: str) -> Reads:
    if gives not in ("frames", "latents"):
        raise ValueError(f"gives: expected 'frames' or 'latents', got {gives!r}")
    return gives  # type: ignore[return-value]
