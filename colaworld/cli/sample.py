"""colaworld sample: roll a start frame forward under chosen latent actions; writes mp4 or GIF."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from colaworld.cli.actions_file import read_actions
from colaworld.cli.command_line import from_command_line
from colaworld.cli.train import choose_device
from colaworld.config import Checked, Count, Natural, Range, Seed, Size
from colaworld.data.config import DataConfig, EncodingConfig
from colaworld.runs.sizes import check_frames
from colaworld.runs.worlds import WorldFolder

if TYPE_CHECKING:
    from torch import Tensor

    from colaworld.models.world import World

COLUMNS, SIDE, BYTES = (
    8,
    1600,
    8_000_000,
)  # of a picture of every action: rows too, pixels, as a GIF
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # to read others may run a program
_NO_IMAGE = (
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
)  # Pillow's
LABEL = 13  # pixels above a rollout


@dataclass(frozen=True)
class SampleOptions(Checked, at="--"):
    """Options of `colaworld sample`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, or a world written by `colaworld export`."""
    out: Path = Path("sample.gif")
    """Where to write: .gif, .mp4 or .png (a strip)."""
    codes: tuple[Natural, ...] = ()
    """Codebook entries, one per frame to generate (one per token and frame where an action has
    several tokens). Without them every action is held for --frames frames, side by side, each labelled
    with its codes; at most 64, no wider or higher than 1600 pixels and, as a GIF, no larger than 8 MB."""
    hold: bool = False
    """Hold each action of --codes for --frames frames, side by side, in place of one after another."""
    actions: str | None = None
    """Real actions to follow one after another, of a world that was adapted to a robot: a .csv, .json or .npy
    file of rows, or names of classes with commas between."""
    frames: Count = 8
    """Frames to generate when --codes is not given or --hold is."""
    start: Path | None = None
    """An image to start from; by default a frame of the data set."""
    data: Path | None = None
    """The data set to take the start frame from; by default the run's own. An exported world has none."""
    episode: Natural = 0
    """Which held-out episode the start frame is from (any episode, for an exported world)."""
    frame: Natural = 0
    """Which frame of it."""
    steps: Count | None = None
    """Denoising steps; by default the run's."""
    guidance: Annotated[float, Range(ge=-1000, le=1000)] | None = None
    """Guidance on the action; by default the run's."""
    seed: Seed = 0
    """Of the noise."""
    scale: Size = 8
    """Pixels are shown this many times larger; less where every action would not fit."""
    fps: Count = 4
    """Frames per second of the result."""
    tokenizer: str | None = None
    """Where an exported world's tokenizer is (a folder or a hub name), where it did not come along."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: list[str]) -> int:
    """Sample; prints the path of what was written."""
    options: SampleOptions = from_command_line(
        SampleOptions,
        argv,
        program="colaworld sample",
        description="Roll a start frame forward under chosen latent actions.",
    )
    if options.out.suffix not in (".gif", ".mp4", ".png"):
        raise ValueError(f"--out: expected a .gif, .mp4 or .png file, got {options.out}")
    if options.actions is not None and options.codes:
        raise ValueError("--actions: expected none beside --codes; one of them steers")
    if not options.run.exists():
        raise ValueError(f"{options.run}: no such folder")
    device = choose_device(options.device)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    import torch

    from colaworld.data.clips import ClipSet

    world, data = _load(options, device)
    sampler = world.sampler
    if options.steps is not None:
        sampler = replace(sampler, steps=options.steps)
    if options.guidance is not None:
        sampler = replace(sampler, guidance=options.guidance)
    world = replace(world, sampler=sampler)
    if options.start is not None:
        history = _read_image(options.start, data)
    else:
        clips = ClipSet(replace(data, frames_per_clip=1))
        if not 0 <= options.episode < len(clips.segments):
            raise ValueError(
                f"--episode: expected 0 .. {len(clips.segments) - 1}, got {options.episode}"
            )
        frames = clips.decoded(clips.segments[options.episode]).frames
        if not 0 <= options.frame < len(frames):
            raise ValueError(f"--frame: expected 0 .. {len(frames) - 1}, got {options.frame}")
        history = torch.from_numpy(frames[options.frame].copy()).float()[None, None] / 255
    height, width = history.shape[-2:]
    model = world.model
    fewest = 1 + model.tokenizer.temporal_stride  # the size alone is checked here
    parts = [name for name, _ in model.named_children()]
    check_frames(model.config, parts, height=height, width=width, frames=fewest)
    if options.actions is not None:
        return _follow(world, options, history.to(device))
    indices, told = _indices(world, options, most=_most_tiles(height, width))
    print(told, flush=True)
    codes = world.lookup(indices.to(device))
    history = history.to(device)
    made = []
    for part in codes.split(16):  # one start and one noise for all: they differ by their actions
        generator = torch.Generator(device=device).manual_seed(options.seed)
        made.append(world.rollout_candidates(history, part[None], generator=generator)[0].cpu())
    video = torch.cat([history.cpu().expand(len(indices), -1, -1, -1, -1), torch.cat(made)], dim=1)
    if options.codes:
        write_video(options.out, tile(video, scale=options.scale), fps=options.fps)
    else:
        labels = [" ".join(map(str, action)) for action in indices[:, 0].tolist()]
        labels = write_contact(options.out, video, labels, scale=options.scale, fps=options.fps)
    shown = len(indices) if options.codes else len(labels)
    if shown < len(indices):
        print(
            f"{shown} of these {len(indices)} are shown (evenly spaced), to stay below {BYTES / 1e6:g} MB"
        )
    print(f"{options.out}: {shown} rollout(s) of {video.shape[1]} frames")
    return 0


def _follow(world: World, options: SampleOptions, history: Tensor) -> int:
    """Roll out under real actions; 0."""
    import torch

    contract, adapter = world.actions, getattr(world.model, "adapter", None)
    if adapter is None or contract is None:
        raise ValueError(
            f"{options.run}: this run knows no real actions: colaworld adapt {options.run} --data SRC "
            "teaches it a robot's own"
        )
    rows = read_actions(options.actions or "", contract)
    actions = torch.from_numpy(rows).to(history.device)[None]
    generator = torch.Generator(device=history.device).manual_seed(options.seed)
    video = world.follow(history, actions, generator=generator).frames.cpu()
    write_video(options.out, tile(video, scale=options.scale), fps=options.fps)
    channels = f" of {', '.join(contract.names)}" if contract.names else ""
    print(f"{options.out}: {video.shape[1]} frames under {len(rows)} real actions{channels}")
    return 0


def _load(options: SampleOptions, device: str) -> tuple[World, DataConfig]:
    """The world of a run or an export, and how start frames are made for it."""
    folder = WorldFolder.of(options.run)
    if folder.exported and options.start is None and options.data is None:
        raise ValueError(
            f"{options.run} is an exported world, which has no data: pass --start IMAGE or --data FOLDER"
        )
    world = folder.load(device=device, tokenizer=options.tokenizer)
    if folder.exported:
        return world, replace(folder.data, path=options.data, split="all")
    data = folder.data if options.start else folder.data.one_set(options.data)
    return world, replace(data, split="heldout")


def _most_tiles(height: int, width: int) -> int:
    """Rollouts of this size that fit beside and below each other, not enlarged."""
    return min(COLUMNS, SIDE // (width + 1)) * min(COLUMNS, SIDE // (height + LABEL + 1)) or 1


def _indices(world: World, options: SampleOptions, *, most: int) -> tuple[Tensor, str]:
    """[rollouts, frames, N] codebook entries, checked, and what they are in words."""
    import torch

    size, tokens = world.codebook_size, world.tokens
    if size is None:
        raise ValueError(
            f"{options.run}: its latent actions are continuous, there are no codes to choose from"
        )
    each = f"of {tokens} tokens each" if tokens > 1 else "of one token each"
    if not options.codes:
        count = size**tokens
        shown = min(count, most)
        numbers = [i * (count - 1) // max(shown - 1, 1) for i in range(shown)]
        digits = [[n // size**k % size for k in reversed(range(tokens))] for n in numbers]
        every = torch.tensor(digits)[:, None]
        which = f"all {count}" if count <= most else f"{most} of {count} (evenly spaced)"
        rest = "" if count <= most else "; --codes shows those you name, with --hold side by side"
        how = f"each held for {options.frames} frame(s)"
        return every.expand(-1, options.frames, -1), f"{which} actions {each}, {how}{rest}"
    codes = torch.tensor(options.codes)
    if len(codes) % tokens or codes.min() < 0 or codes.max() >= size:
        raise ValueError(
            f"--codes: expected whole actions of {tokens} entries in 0 .. {size - 1}, "
            f"got {' '.join(map(str, options.codes))}"
        )
    actions = codes.view(-1, tokens)
    named = ", ".join(f"({' '.join(map(str, a))})" for a in actions.tolist())
    told = f"{len(actions)} action(s) {each}: {named}"
    if options.hold:
        held = actions[:, None].expand(-1, options.frames, -1)
        return held, f"{told}; each held for {options.frames} frame(s)"
    return actions[None], f"{told}; one after another, {len(actions)} new frame(s)"


def _read_image(path: Path, data: DataConfig) -> Tensor:
    """[1, 1, 3, H, W] in [0, 1], cropped and resized as the run's own frames were."""
    import torch

    from colaworld.data import transforms

    try:
        if path.exists() and not path.is_file():  # to open a pipe is to wait for ever
            raise ValueError("not a file")
        image = np.asarray(Image.open(path, formats=_FORMATS).convert("RGB"))
    except UnidentifiedImageError:  # its text is the name again
        raise ValueError(f"--start {path}: not an image of a known format") from None
    except (OSError, *_NO_IMAGE) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"--start {path}: cannot be read: {why}") from None
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    if data.height is not None and data.width is not None:
        top, left, height, width = transforms.crop_box(
            data.crop if data.crop in ("none", "center") else "center",  # a box is of the recording
            height=pixels.shape[2],
            width=pixels.shape[3],
            target_height=data.height,
            target_width=data.width,
        )
        cropped = pixels[:, :, top : top + height, left : left + width]
        pixels = transforms.resize(cropped, data.height, data.width)
    return pixels.float()[None] / 255


def tile(video: Tensor, labels: Sequence[str] = (), *, scale: int) -> np.ndarray:
    """Rollouts [B, T, 3, H, W] side by side, enlarged without blur: uint8 [T, H', W', 3].

    At most COLUMNS a row, a pixel of theirs between them; a line for each one's label above it.
    """
    import torch

    count, length, _, height, width = video.shape
    columns = min(count, COLUMNS, max(1, SIDE // (width + 1)) if labels else COLUMNS)
    rows, above = -(-count // columns), LABEL if labels else 0
    high, wide = height * scale + above, width * scale
    size = (rows * (high + scale) - scale, columns * (wide + scale) - scale)
    page = Image.new("RGB", size[::-1], "white")
    places = [(i // columns * (high + scale), i % columns * (wide + scale)) for i in range(count)]
    for label, (top, left) in zip(labels, places, strict=bool(labels)):
        ImageDraw.Draw(page).text((left, top), label, fill="black", font=ImageFont.load_default())
    canvas = np.asarray(page)[None].repeat(length, axis=0)
    pixels = (video.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for clip, (top, left) in zip(pixels, places, strict=True):
        large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
        canvas[:, top + above : top + high, left : left + wide] = large
    return canvas


def write_contact(
    path: Path, video: Tensor, labels: list[str], *, scale: int, fps: int
) -> list[str]:
    """Labelled rollouts [B, T, 3, H, W], within SIDE and, as a GIF, BYTES; the labels of those shown.

    First they are enlarged less, then every second one is left out.
    """
    while True:
        side = max(tile(video[:, :1], labels, scale=1).shape[1:3])
        scale = max(1, min(scale, SIDE // side))
        write_video(path, tile(video, labels, scale=scale), fps=fps)
        size = path.stat().st_size
        if path.suffix != ".gif" or size <= BYTES or (scale == 1 and len(labels) == 1):
            return labels
        if scale > 1:
            scale = max(1, min(scale - 1, int(scale * (BYTES / size) ** 0.5)))
        else:
            video, labels = video[::2], labels[::2]


def write_video(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """uint8 [T, H, W, 3] to a GIF, an mp4 or a strip of frames (png)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(np.concatenate(list(frames), axis=0)).save(path)
    elif path.suffix == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    else:
        from colaworld.data.video_writer import VideoWriter

        height, width = (n - n % 2 for n in frames.shape[1:3])  # yuv420p needs even sizes
        encoding = EncodingConfig(pixel_format="yuv420p")
        with VideoWriter(path, fps=fps, height=height, width=width, encoding=encoding) as writer:
            for frame in frames[:, :height, :width]:
                writer.write(np.ascontiguousarray(frame))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
