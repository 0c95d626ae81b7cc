"""colaworld sample: roll a start frame forward under chosen latent actions; writes mp4 or GIF."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from colaworld.cli.train import choose_device
from colaworld.config import from_command_line
from colaworld.data import transforms
from colaworld.data.clips import ClipSet, DataConfig
from colaworld.data.video_writer import EncodingConfig, VideoWriter
from colaworld.models.world import World
from colaworld.runs.load import load_world
from colaworld.runs.sizes import check_frames


@dataclass(frozen=True)
class SampleOptions:
    """Options of `colaworld sample`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Path = Path("sample.gif")
    """Where to write: .gif, .mp4 or .png (a strip)."""
    codes: tuple[int, ...] = ()
    """Codebook entries, one per frame to generate (one per token and frame where an action has
    several tokens). Without them every code is held for --frames frames, side by side."""
    hold: bool = False
    """Hold each action of --codes for --frames frames, side by side, in place of one after another."""
    frames: int = 8
    """Frames to generate when --codes is not given or --hold is."""
    start: Path | None = None
    """An image to start from; by default a frame of the data set."""
    data: Path | None = None
    """The data set to take the start frame from; by default the run's own."""
    episode: int = 0
    """Which held-out episode the start frame is from."""
    frame: int = 0
    """Which frame of it."""
    steps: int | None = None
    """Denoising steps; by default the run's."""
    guidance: float | None = None
    """Guidance on the action; by default the run's."""
    seed: int = 0
    """Of the noise."""
    scale: int = 8
    """Pixels are shown this many times larger."""
    fps: int = 4
    """Frames per second of the result."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: list[str]) -> int:
    """Sample; prints the path of what was written."""
    options = from_command_line(
        SampleOptions(run=tyro.MISSING),
        argv,
        program="colaworld sample",
        description="Roll a start frame forward under chosen latent actions.",
    )
    if options.out.suffix not in (".gif", ".mp4", ".png"):
        raise ValueError(f"--out: expected a .gif, .mp4 or .png file, got {options.out}")
    if options.scale < 1 or options.frames < 1 or options.fps < 1:
        raise ValueError("--scale, --frames and --fps: expected >= 1")
    device = choose_device(options.device)
    world, config = load_world(options.run, device=device)
    sampler = world.sampler
    if options.steps is not None:
        sampler = replace(sampler, steps=options.steps)
    if options.guidance is not None:
        sampler = replace(sampler, guidance=options.guidance)
    world = replace(world, sampler=sampler)
    if options.start is not None:
        history = _read_image(options.start, config.data)
    else:
        data = replace(config.data, path=options.data or config.data.path, frames_per_clip=1)
        clips = ClipSet(replace(data, split="heldout"))
        if not 0 <= options.episode < len(clips.segments):
            raise ValueError(
                f"--episode: expected 0 .. {len(clips.segments) - 1}, got {options.episode}"
            )
        frames = clips.decoded(clips.segments[options.episode]).frames
        if not 0 <= options.frame < len(frames):
            raise ValueError(f"--frame: expected 0 .. {len(frames) - 1}, got {options.frame}")
        history = torch.from_numpy(frames[options.frame].copy()).float()[None, None] / 255
    height, width = history.shape[-2:]
    fewest = 1 + config.model.tokenizer.temporal_stride  # the size alone is checked here
    check_frames(config.model, config.parts(), height=height, width=width, frames=fewest)
    indices = _indices(world, options)
    codes = world.lookup(indices.to(device))
    generator = torch.Generator(device=device).manual_seed(options.seed)
    history = history.to(device)  # one start and one noise for all: they differ by their actions
    made = world.rollout_candidates(history, codes[None], generator=generator)[0]
    video = torch.cat([history.expand(len(made), -1, -1, -1, -1), made], dim=1).cpu()
    write_video(options.out, tile(video), scale=options.scale, fps=options.fps)
    print(f"{options.out}: {len(indices)} rollout(s) of {video.shape[1]} frames")
    return 0


def _indices(world: World, options: SampleOptions) -> Tensor:
    """[rollouts, frames, N] codebook entries, checked."""
    size, tokens = world.codebook_size, world.tokens
    if size is None:
        raise ValueError(
            f"{options.run}: its latent actions are continuous, there are no codes to choose from"
        )
    if not options.codes:
        if size**tokens > 64:
            raise ValueError(f"{size}^{tokens} codes are too many to show; pass --codes")
        every = torch.cartesian_prod(*[torch.arange(size)] * tokens).view(-1, 1, tokens)
        return every.expand(-1, options.frames, -1)
    codes = torch.tensor(options.codes)
    if len(codes) % tokens or codes.min() < 0 or codes.max() >= size:
        raise ValueError(
            f"--codes: expected whole actions of {tokens} entries in 0 .. {size - 1}, "
            f"got {' '.join(map(str, options.codes))}"
        )
    if options.hold:
        return codes.view(-1, 1, tokens).expand(-1, options.frames, -1)
    return codes.view(1, -1, tokens)


def _read_image(path: Path, data: DataConfig) -> Tensor:
    """[1, 1, 3, H, W] in [0, 1], cropped and resized as the run's own frames were."""
    try:
        image = np.asarray(Image.open(path).convert("RGB"))
    except OSError as error:
        raise ValueError(f"--start {path}: not a readable image: {error}") from None
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


def tile(video: Tensor, gap: int = 1) -> np.ndarray:
    """Rollouts [B, T, 3, H, W] side by side: uint8 [T, H', W', 3], at most eight a row."""
    count, length, _, height, width = video.shape
    columns = min(count, 8)
    rows = -(-count // columns)
    canvas = np.full(
        (length, rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8
    )
    pixels = (video.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for i, clip in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = clip
    return canvas


def write_video(path: Path, frames: np.ndarray, *, scale: int, fps: int) -> None:
    """uint8 [T, H, W, 3] to a GIF, an mp4 or a strip of frames (png), enlarged without blur."""
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(np.concatenate(list(frames), axis=0)).save(path)
    elif path.suffix == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    else:
        height, width = (n - n % 2 for n in frames.shape[1:3])  # yuv420p needs even sizes
        encoding = EncodingConfig(pixel_format="yuv420p")
        with VideoWriter(path, fps=fps, height=height, width=width, encoding=encoding) as writer:
            for frame in frames[:, :height, :width]:
                writer.write(np.ascontiguousarray(frame))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
