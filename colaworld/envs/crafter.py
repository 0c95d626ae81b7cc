"""Crafter, filmed: the game's own rules and textures, drawn by a quicker renderer.

Not here: rewards, achievements, the inventory's meaning. Needs `pip install 'colaworld[crafter]'`.

What departs from the stock environment, and why:
- Five actions by default (noop and the four moves). A move scrolls the whole view by one cell, so
  its effect is visible; crafting and placing mostly change nothing on the screen.
- `view="map"` (default) shows the 9x7 cells of the map and leaves out the two inventory rows, whose
  numbers follow hunger and thirst and not the actions. 4 px a cell gives 28x36 frames.
- Frames are drawn once per step from a texture atlas; pixels equal the stock renderer's.
- World generation runs on plain lists (4-5 times quicker, the same worlds).
- Creatures in a chunk are kept in insertion order. The stock sets iterate by memory address, so the
  same seed could play differently in another process.
- Keep episodes to about 100 steps: night falls after step 148 and covers the frame with noise.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.variation import striped

VISIBLE_ACTIONS = ("noop", "move_left", "move_right", "move_up", "move_down")
_GRID = (9, 9)  # cells across and down, of which the two lowest rows are the inventory
_MAP_ROWS = 7


class Crafter:
    """Crafter as an `Env`.

    `cell`: pixels per cell (4 -> 28x36 frames for the map, 36x36 with the inventory).
    `view`: "map" crops to the map, "full" keeps the inventory rows.
    `actions`: which of the game's actions may be taken; recorded ids are indices into this tuple.
    `start`: "center" as the game does it, always in a meadow where many moves show nothing but
    grass; "varied" moves the player to a random free cell with at least a quarter of other things
    (trees, stone, sand, water) in view and no lava.
    """

    name = "crafter"
    fps = 10.0  # nominal: the game is turn-based
    VARIATIONS: ClassVar = {
        "texture": "stripes of a quarter of a cell on every material",
        "layout": "the camera looks 2 cells right of the player and 1 below",
    }

    def __init__(
        self,
        *,
        cell: int = 4,
        view: Literal["map", "full"] = "map",
        actions: tuple[str, ...] = VISIBLE_ACTIONS,
        start: Literal["center", "varied"] = "center",
        vary: Literal["texture", "layout"] | None = None,
    ) -> None:
        try:
            import crafter
        except ImportError as error:
            raise ImportError(
                "the Crafter environment needs crafter: pip install 'colaworld[crafter]'"
            ) from error
        from importlib.metadata import version

        if cell < 2:
            raise ValueError(f"Crafter.cell: expected at least 2 pixels per cell, got {cell}")
        if view not in ("map", "full"):
            raise ValueError(f"Crafter.view: expected 'map' or 'full', got {view!r}")
        if start not in ("center", "varied"):
            raise ValueError(f"Crafter.start: expected 'center' or 'varied', got {start!r}")
        if vary is not None and vary not in self.VARIATIONS:
            raise ValueError(f"Crafter.vary: expected {' or '.join(self.VARIATIONS)}, got {vary!r}")
        self.vary = vary
        if vary is not None and "sleep" in actions:
            raise ValueError(
                "Crafter.vary: sleep is drawn by the game itself, which varies nothing"
            )
        known = list(crafter.constants.actions)
        unknown = [name for name in actions if name not in known]
        if unknown or not actions:
            raise ValueError(f"Crafter.actions: expected some of {known}, got {list(actions)}")
        self.version = version("crafter")
        self.view, self.start = view, start
        self.cell = cell
        self.height = cell * (_MAP_ROWS if view == "map" else _GRID[1])
        self.width = cell * _GRID[0]
        self.action_spec = ActionSpec("action", "discrete", len(actions), tuple(actions))
        self._ids = [known.index(name) for name in actions]
        self._game = crafter.Env(size=(cell * _GRID[0], cell * _GRID[1]), length=0, seed=0)
        self._game._obs = lambda: None  # drawn below, once per step
        self._game._sem_view = lambda: None
        self._atlas: Any = None  # array of textures, once it is drawn

    def reset(self, seed: int) -> np.ndarray:
        self._game._seed = int(seed)
        self._game._episode = 0
        with _quick_noise():
            self._game.reset()
        _order_chunks(self._game._world)
        if self.start == "varied":
            self.move_player(np.random.default_rng([int(seed), 1]))
        return self.draw()

    def step(self, action: int | np.ndarray) -> tuple[np.ndarray, bool]:
        action = int(action)
        if not 0 <= action < len(self._ids):
            raise ValueError(
                f"Crafter.step: expected an action in 0..{len(self._ids) - 1}, got {action}"
            )
        _, _, done, _ = self._game.step(self._ids[action])
        return self.draw(), bool(done)

    def state(self) -> dict[str, Any]:
        player = self._game._player
        return {
            "position": tuple(int(v) for v in player.pos),
            "facing": tuple(player.facing),
            "inventory": dict(player.inventory),
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Crafter:
        """Textures, which never change, stay one."""
        if self._atlas is None:
            self._atlas = self._build_atlas()
        for shared in (self._game._textures, self._atlas):
            memo[id(shared)] = shared
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin._game = copy.deepcopy(self._game, memo)
        return twin

    def walkable(self, cell: tuple[int, int]) -> bool:
        """Whether the player can step onto a cell (x, y) now, and live."""
        return self._inside(cell) and bool(self._game._player.is_free(cell))

    def material(self, cell: tuple[int, int]) -> str | None:
        """What a cell (x, y) is made of; None beyond the edge."""
        return self._game._world[cell][0] if self._inside(cell) else None

    def _inside(self, cell: tuple[int, int]) -> bool:
        return all(0 <= v < size for v, size in zip(cell, self._game._world.area, strict=True))

    def move_player(self, rng: np.random.Generator) -> None:
        """To a random free cell with things to see; it stays where it is if there is none."""
        world = self._game._world
        ids = world._mat_ids
        inside = world._mat_map[4:-4, 3:-3]  # cells whose whole view lies in the world
        views = np.lib.stride_tricks.sliding_window_view(world._mat_map, (_GRID[0], _MAP_ROWS))
        plain = (views == ids["grass"]).mean((-2, -1))
        free = np.isin(inside, [ids["grass"], ids["path"], ids["sand"]])
        free &= (world._obj_map[4:-4, 3:-3] == 0) & ~(views == ids["lava"]).any((-2, -1))
        spots = np.argwhere(free & (plain <= 0.75) & (plain >= 0.1))
        if len(spots):
            world.move(self._game._player, spots[rng.integers(len(spots))] + (4, 3))

    def draw(self) -> np.ndarray:
        """The frame of where it is, uint8 [H, W, 3]."""
        game = self._game
        world, unit = game._world, np.array([self.cell, self.cell])
        if self._atlas is None:
            self._atlas = self._build_atlas()
        if game._player.sleeping:  # dimmed by the stock renderer; not worth a second copy of it
            canvas = game._local_view(game._player, unit)
        else:
            canvas = self._draw_map(world, game._player.pos)
        if self.view == "full":
            canvas = np.concatenate([canvas, game._item_view(game._player.inventory, unit)], 1)
        return np.ascontiguousarray(canvas.transpose(1, 0, 2)).astype(np.uint8)

    def _build_atlas(self) -> np.ndarray:
        """[materials + 1, cell, cell, 3]; the last is the grey beyond the edge of the world."""
        textures, world = self._game._textures, self._game._world
        unit = (self.cell, self.cell)
        tiles = [textures.get(world._mat_names[i], unit) for i in range(len(world._mat_names))]
        tiles = [tile[..., :3] for tile in tiles]
        if self.vary == "texture":
            tiles = [striped(tile, max(1, self.cell // 4)) for tile in tiles]
        return np.stack([*tiles, np.full_like(tiles[0], 127)])

    def _draw_map(self, world: Any, centre: np.ndarray) -> np.ndarray:
        """The lit map, [x, y, 3] as the game keeps it."""
        corner = np.array(centre) - np.array([_GRID[0], _MAP_ROWS]) // 2
        if self.vary == "layout":
            corner += (2, 1)
        x, y = corner[0] + np.arange(_GRID[0]), corner[1] + np.arange(_MAP_ROWS)
        inside = np.ix_((x >= 0) & (x < world.area[0]), (y >= 0) & (y < world.area[1]))
        cells = np.ix_(np.clip(x, 0, world.area[0] - 1), np.clip(y, 0, world.area[1] - 1))
        kinds = np.full((_GRID[0], _MAP_ROWS), len(self._atlas) - 1)
        kinds[inside] = world._mat_map[cells][inside]
        present = np.zeros(kinds.shape, np.int64)
        present[inside] = world._obj_map[cells][inside]
        canvas = (
            self._atlas[kinds]
            .transpose(0, 2, 1, 3, 4)
            .reshape(_GRID[0] * self.cell, _MAP_ROWS * self.cell, 3)
        )
        for i, j in zip(*np.nonzero(present), strict=True):
            texture = self._game._textures.get(
                world._objects[present[i, j]].texture, (self.cell, self.cell)
            )
            _paste(canvas[i * self.cell :, j * self.cell :], texture)
        return self._game._local_view._light(canvas, world.daylight)


def _paste(canvas: np.ndarray, texture: np.ndarray) -> None:
    """Blend a texture with alpha onto the canvas' corner, rounding as the game does."""
    spot = canvas[: texture.shape[0], : texture.shape[1]]
    if texture.shape[-1] == 4:
        alpha = texture[..., 3:].astype(np.float32) / 255
        over = texture[..., :3].astype(np.float32) / 255
        under = spot.astype(np.float32) / 255
        spot[:] = (255 * (alpha * over + (1 - alpha) * under)).astype(np.uint8)
    else:
        spot[:] = texture


class _OrderedSet(dict):
    """A set that iterates in order of insertion, as far as the game's chunks use one."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


def _order_chunks(world: Any) -> None:
    chunks: defaultdict[Any, _OrderedSet] = defaultdict(_OrderedSet)
    for key in world._chunks:
        chunks[key] = _OrderedSet()
    for item in world.objects:  # in order of creation
        chunks[world.chunk_key(item.pos)].add(item)
    world._chunks = chunks


@contextlib.contextmanager
def _quick_noise() -> Iterator[None]:
    """While open, the world generator's noise reads lists instead of numpy scalars: same values."""
    import importlib.util

    import opensimplex
    from crafter import worldgen
    from opensimplex import internals

    if importlib.util.find_spec("numba") is not None:  # compiled there: already quick
        yield
        return

    class Listed(opensimplex.OpenSimplex):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            for name in ("_perm", "_perm_grad_index3"):
                if isinstance(getattr(self, name, None), np.ndarray):
                    setattr(self, name, getattr(self, name).tolist())

    module, gradients = worldgen.opensimplex, getattr(internals, "GRADIENTS3", None)
    worldgen.opensimplex = SimpleNamespace(OpenSimplex=Listed)
    if isinstance(gradients, np.ndarray):
        internals.GRADIENTS3 = gradients.tolist()
    try:
        yield
    finally:
        worldgen.opensimplex = module
        if gradients is not None:
            internals.GRADIENTS3 = gradients
