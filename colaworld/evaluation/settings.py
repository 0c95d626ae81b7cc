"""How an evaluation is done, and on how much. Not here: doing it (`evaluate.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, unique
from pathlib import Path
from typing import Annotated, Literal

from colaworld.config import Checked, ConfigError, Count, Natural, Positive, Range, Seed
from colaworld.metrics.config import ProbeConfig


@unique
class RandomStream(IntEnum):
    """Who draws under an evaluation's seed: each from a stream of its own, so that a new one moves
    no number of another. A number that was given stays; those from 1000 on are for measures of
    your own."""

    ROLLOUT_NOISE = 1
    CODES = 2
    PROBE = 3
    GRID_NOISE = 4
    SHARED_INTERVALS = 5
    NMSE = 6
    BOUNDS = 7
    COMPARISON = 8
    TEXT_EFFECT = 11
    NO_ACTION = 12
    TRANSFER = 13
    LEAKAGE = 14
    SENSITIVITY = 15
    SEGMENTS = 16
    PROBE_PARTS = 17
    MLP_PROBE = 18
    INFORMATION = 19
    LPIPS = 20
    ADAPTATION = 30
    ATLAS = 31
    REAL_ACTIONS = 32


@dataclass(frozen=True)
class EvaluationConfig(Checked, at="evaluation."):
    """What is evaluated, and on how much."""

    clips: Annotated[int, Range(ge=2, le=10**9)] = 64
    """Held-out clips rolled out, five times each (four where the world has no null action), and four
    single steps for the controls below: that is what an evaluation costs. With 8 steps a clip it is
    44 steps; the actions of two of its videos and two cuts are inferred anew."""
    probe_clips: Count = 256
    """Held-out clips whose actions are inferred, for the probe and for codebook health."""
    history: Count = 1
    """Frames given at the start of every rollout."""
    horizon: Count | None = None
    """Frames predicted after them; by default all that a clip holds."""
    batch_size: Count = 16
    """Clips per call of the world; up to rounding no number depends on it."""
    bootstrap_samples: Count = 1000
    """Resampled sets of episodes behind each 95 % interval."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The probes from latent to real actions."""
    leakage_clips: Natural = 64
    """Clips of the scene-cut test, three single steps each; 0 leaves it out."""
    leakage_margin: Positive = 1.0
    """dB by which the action inferred over a cut must beat that of another cut before leakage is
    called. 1 dB is a fifth of the squared error, and half of what actions steer in published worlds;
    an honest action that happens to fit the new scene gains less."""
    sensitivity_clips: Natural = 64
    """Clips of which a step is drawn again with other noise, to set off what the codes change; 0
    leaves it out."""
    action_bins: Annotated[int, Range(ge=2, le=64)] = 8
    """Quantile bins of a continuous real action, for its mutual information with the codes."""
    shown_clips: Count = 4
    """Clips shown as strips in the report."""
    shown_starts: Count = 3
    """Start frames in the grid "same start, every code"."""
    shown_codes: Count = 16
    """Codes in that grid, at most."""
    text_effect: bool = False
    """Also measure what the pre-trained video model loses without its cross-attention (paired flow
    loss, null caption against removed); its weights must hold a text path."""
    lpips: Path | None = None
    """Folder with the two published files of LPIPS: alex.pth (of the package lpips 0.1.4,
    lpips/weights/v0.1) and alexnet-owt-7be5be79.pth (of torchvision), or vgg.pth and
    vgg16-397923af.pth. Without it LPIPS is not measured."""
    lpips_trunk: Literal["alex", "vgg"] = "alex"
    """Which of both networks compares the frames."""
    fvd: Path | None = None
    """The I3D of Kinetics-400 for FVD: i3d_pretrained_400.pt (a state dict), or StyleGAN-V's
    i3d_torchscript.pt. The latter is code that opening it runs, so it is opened only where its sha256
    is the published one. Rollouts need 9 frames. Without it FVD is not measured."""
    seed: Seed = 0
    """Of the noise, the wrong actions, the probe's split and the intervals."""

    def check_weights(self) -> None:
        """ConfigError where weights that it names are not there; what is in them is seen when read."""
        for key, path, what in (("lpips", self.lpips, "folder"), ("fvd", self.fvd, "file")):
            if path is not None and not (path.is_dir() if what == "folder" else path.is_file()):
                raise ConfigError(
                    f"evaluation.{key}: expected a {what} of weights, found none at {path}; None leaves "
                    "it out"
                )
