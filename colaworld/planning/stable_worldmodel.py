"""A world for the solvers of stable-worldmodel: they ask it what candidates cost.

    solver = CEMSolver(model=CostModel(WorldDynamics(world, space="real")), ...)

It has what their protocols ask for, and nothing of theirs is imported: `get_cost` and `criterion` (Costable;
release 0.1.1, stable_worldmodel/protocols.py), `encode` and `rollout` (Dynamics; github.com/galilai-group/
stable-worldmodel, the same file and planning/evaluator.py, read in November 2026). Not here: solvers.
Shape legend: B environments, S candidates, h actions, A numbers of one, D numbers of a frame or latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from colaworld.planning.contracts import Seen
from colaworld.planning.costs import GoalDistance, Over
from colaworld.planning.dynamics import WorldDynamics
from colaworld.planning.spaces import Discrete, Scores

_STATE = "colaworld_state"  # beside what they cache in their dict: pixels that were read once


class CostModel(nn.Module):
    """What candidates cost in a world: squared distance from the goal image, in frames or latents.

    Args:
        dynamics: of a world, under codes (for CategoricalCEMSolver: action_space Discrete(K), action_block N)
            or under real actions (action_block: the steps of one).
        mean, std: of actions, where theirs are normalised (`process["action"]`): a candidate c stands for
            c std + mean, A numbers or one for all. Bounds are kept. For continuous actions.
        over: which steps count; theirs count the last.
        seed: of the noise, the same for all candidates of all rounds.
        rows: how many candidates, over all environments, are rolled at once.

    `info` is their dict: "pixels" and "goal", [B, S, T, 3, H, W] or channels last, uint8 or floats in
    [0, 1], of the size the world was trained on, and not normalised. The last frame of each is the current
    one, and the goal.

    Raises ValueError on latents of several frames, which a goal image has none of.
    """

    def __init__(
        self,
        dynamics: WorldDynamics,
        *,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        over: Over = "last",
        seed: int = 0,
        rows: int = 256,
    ) -> None:
        super().__init__()
        if dynamics.gives == "latents" and dynamics.world.stride > 1:
            raise ValueError(
                f"CostModel: a latent of this world is {dynamics.world.stride} frames, a goal image is one; use "
                "gives='frames'"
            )
        self.model = dynamics.world.model  # theirs ask a module for its dtype
        self.dynamics, self.over, self.seed, self.rows = dynamics, over, seed, rows
        self.mean, self.std = torch.as_tensor(mean), torch.as_tensor(std)

    @torch.no_grad()
    def encode(self, x: dict[str, Any]) -> dict[str, Any]:
        """Adds "emb" [B, T, D] of "pixels" [B, T, 3, H, W]: each frame, or its latent, flattened."""
        frames = self._pictures(x, "pixels")
        if self.dynamics.gives == "latents":
            single = frames.flatten(0, 1)[:, None]
            latents = self.model.tokenizer.encode(single)[:, :, 0]
            frames = latents.unflatten(0, frames.shape[:2])
        x["emb"] = frames.flatten(2)
        return x

    @torch.no_grad()
    def rollout(self, info: dict[str, Any], action_candidates: Tensor) -> dict[str, Any]:
        """Adds "predicted_emb" [B, S, h, D], the frames that candidates [B, S, h, A] lead to one after another.

        History is read once and kept in `info`, as they do with "emb".
        """
        if _STATE not in info:
            history = self._pictures(info, "pixels", candidates=True)
            noise = torch.Generator(device=history.device).manual_seed(self.seed)
            info[_STATE] = self.dynamics.begin(Seen(history, noise))
        actions = self._actions(action_candidates)
        parts = actions.split(max(1, self.rows // len(actions)), dim=1)
        made = torch.cat([self.dynamics.roll(info[_STATE], part) for part in parts], dim=1)
        info["predicted_emb"] = made.flatten(3)
        return info

    def criterion(self, info: dict[str, Any], action_candidates: Tensor | None = None) -> Tensor:
        """[B, S]: how far "predicted_emb" is from "goal_emb" [B, T, D], whose last counts."""
        cost = GoalDistance(info["goal_emb"][:, -1], reads=self.dynamics.gives, over=self.over)
        return cost(info["predicted_emb"], torch.empty(0))

    def get_cost(self, info: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """[B, S] of candidates [B, S, h, A]."""
        if "goal_emb" not in info:
            goal = {"pixels": self._pictures(info, "goal", candidates=True)}
            info["goal_emb"] = self.encode(goal)["emb"]
        return self.criterion(self.rollout(info, action_candidates))

    def _pictures(self, info: dict[str, Any], key: str, *, candidates: bool = False) -> Tensor:
        """[B, T, 3, H, W] floats in [0, 1]; of frames that all candidates share, [B, S, T, ...], those once."""
        given = info.get(key)
        if given is None:
            raise ValueError(
                f"CostModel: {key}: expected frames in their dict, which has {sorted(info)}"
            )
        frames = torch.as_tensor(given)
        fits = frames.ndim == 5 + candidates
        if fits and candidates:
            frames = frames[:, 0]
        if fits and frames.shape[2] != 3 and frames.shape[-1] == 3:
            frames = frames.movedim(-1, 2)
        if not fits or frames.shape[2] != 3:
            wanted = "[B, S, T, 3, H, W]" if candidates else "[B, T, 3, H, W]"
            raise ValueError(
                f"CostModel: {key}: expected frames {wanted}, got {list(torch.as_tensor(given).shape)}"
            )
        frames = frames.to(next(self.model.parameters()).device)
        floats = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        low, high = float(floats.min()), float(floats.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"CostModel: {key}: expected uint8, or floats in [0, 1], got {low:.3g} .. {high:.3g}; leave frames "
                "as they are (transform)"
            )
        return floats

    def _actions(self, candidates: Tensor) -> Tensor:
        """Actions of the space, of theirs: numbers in units of the data, or one-hot rows."""
        space = self.dynamics.space
        width = space.size * space.tokens if isinstance(space, Discrete) else space.width
        if candidates.ndim != 4 or candidates.shape[-1] != width:
            what = (
                f"{space.tokens} one-hot rows of {space.size}"
                if isinstance(space, Discrete)
                else "numbers"
            )
            raise ValueError(
                f"CostModel: action_candidates: expected [B, S, h, {width}], {what}, got {list(candidates.shape)}; "
                "set action_block"
            )
        if isinstance(space, Discrete):
            return Scores(space).out(candidates)
        low, high = space.bounds(candidates.device)
        numbers = candidates * self.std.to(candidates) + self.mean.to(candidates)
        return torch.minimum(torch.maximum(numbers, low), high)
