"""The CoLA world model: a latent action model and a video generator that condition each other.

    frames --idm--> z --quantizer--> codes --conditioner--> modulation --backbone--> velocity

The direct children are the parameter groups that training phases name: `tokenizer`, `idm`,
`quantizer`, `conditioner`, `backbone`, and for the two-stage baseline `fdm`.
Not here: losses and phases (training), samplers (flow).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from colaworld.contracts import LatentActions, Rollout
from colaworld.flow.rollout import rollout
from colaworld.flow.samplers import SamplerConfig, Velocity, guided
from colaworld.models.backbones import BackboneConfig, build_backbone
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.conditioning import ActionConditioner, ConditionerConfig
from colaworld.models.latent_action.fdm import FDMConfig, ForwardDynamicsModel
from colaworld.models.latent_action.idm import IDMConfig, InverseDynamicsModel
from colaworld.models.latent_action.quantizers import Quantized, QuantizerConfig, build_quantizer
from colaworld.models.layers.attention import use_backend
from colaworld.models.tokenizers import TokenizerConfig, build_tokenizer
from colaworld.models.tokenizers.pixels import PixelTokenizerConfig
from colaworld.ops import AttentionBackend


@dataclass(frozen=True)
class ModelConfig:
    """Every size of the model."""

    tokenizer: TokenizerConfig = field(default_factory=PixelTokenizerConfig)
    """Pixels to latents."""
    backbone: BackboneConfig = field(default_factory=STDiT3Config)
    """The video generator."""
    idm: IDMConfig = field(default_factory=IDMConfig)
    """The inverse dynamics model."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The quantizer."""
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    """The path from actions into the generator."""
    fdm: FDMConfig = field(default_factory=FDMConfig)
    """The forward model of the two-stage baseline; built only where a phase trains it."""
    attention: AttentionBackend = "auto"
    """auto; fused (one kernel with norm and rotation inside); sdpa; flex; flash (flash-attn)."""
    window: int = 4
    """Frames the generator sees at once in a rollout; normally the clip length of training."""


class WorldModel(nn.Module):
    """See the module's docstring. `parts` says what is built besides tokenizer and backbone."""

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        parts: tuple[str, ...] = ("idm", "quantizer", "conditioner"),
        tokenizer: nn.Module | None = None,  # one made already, in place of config.tokenizer
    ) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        known = {"idm", "quantizer", "conditioner", "fdm"}
        if set(parts) - known:
            raise ValueError(f"parts: expected a subset of {sorted(known)}, got {parts}")
        self.tokenizer = build_tokenizer(config.tokenizer) if tokenizer is None else tokenizer
        self.backbone = build_backbone(config.backbone)
        if self.tokenizer.channels != self.backbone.channels:
            raise ValueError(
                f"the generator takes latents of {self.backbone.channels} channels "
                f"(model.backbone.in_channels), the tokenizer makes {self.tokenizer.channels}"
            )
        dim, tokens = config.idm.dim, config.idm.tokens
        if "idm" in parts:
            self.idm = InverseDynamicsModel(config.idm)
        if "quantizer" in parts:
            self.quantizer = build_quantizer(config.quantizer, dim)
        if "conditioner" in parts:
            self.conditioner = ActionConditioner(
                config.conditioner,
                width=self.backbone.width,
                blocks=self.backbone.modulated_blocks,
                tokens=tokens,
                dim=dim,
                actions_per_frame=self.tokenizer.temporal_stride,
            )
        if "fdm" in parts:
            self.fdm = ForwardDynamicsModel(config.fdm, dim=dim)
        use_backend(self, config.attention)

    @property
    def codebook_size(self) -> int | None:
        """Entries of the codebook; None for continuous latent actions."""
        return getattr(getattr(self, "quantizer", None), "codebook_size", None)

    @property
    def tokens(self) -> int:
        """Tokens per latent action."""
        return self.config.idm.tokens

    def quantize(self, frames: Tensor, *, generator: torch.Generator | None = None) -> Quantized:
        """Frames [B, T, 3, H, W] in [0, 1] -> codes [B, T - 1, N, d], indices, loss."""
        return self.quantizer(self.idm(frames), generator=generator)

    @torch.no_grad()
    def infer_actions(self, frames: Tensor) -> LatentActions:
        """The latent actions between the frames [B, T, 3, H, W] in [0, 1], for evaluation.

        Videos longer than `config.window` are seen through a sliding window of that length, so
        that no action is inferred from a longer past than in training.
        """
        window = self.config.window
        with _evaluating(self):
            first = self.quantize(frames[:, :window])
            codes, indices = [first.codes], [first.indices]
            for end in range(window + 1, frames.shape[1] + 1):
                later = self.quantize(frames[:, end - window : end])
                codes.append(later.codes[:, -1:])
                indices.append(None if later.indices is None else later.indices[:, -1:])
        whole = None if indices[0] is None else torch.cat(indices, dim=1)  # type: ignore[arg-type]
        return LatentActions(torch.cat(codes, dim=1), whole)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [..., N, d] of codebook indices [..., N]."""
        return self.quantizer.lookup(indices)

    def velocity(
        self,
        latents: Tensor,  # [B, C, T, h, w]
        times: Tensor,  # [B, T]
        codes: Tensor | None = None,  # [B, r (T - 1), N, d]; None = the plain generator
        drop: Tensor | None = None,  # [B, r (T - 1)] bool: use the null action there
    ) -> Tensor:
        """The generator's velocity under latent actions."""
        modulation = None if codes is None else self.conditioner(codes, drop)
        return self.backbone.velocity(latents, times, modulation=modulation)

    def velocity_under(self, codes: Tensor | None, guidance: float = 1.0) -> Velocity:
        """A velocity function for samplers; the actions are embedded once."""
        if codes is None:
            return self.backbone.velocity
        modulation = self.conditioner(codes)

        def conditional(x: Tensor, times: Tensor) -> Tensor:
            return self.backbone.velocity(x, times, modulation=modulation)

        if guidance == 1.0:
            return conditional
        null = self.conditioner.null_modulation(codes)

        def unconditional(x: Tensor, times: Tensor) -> Tensor:
            return self.backbone.velocity(x, times, modulation=null)

        return guided(conditional, unconditional, guidance)

    @torch.no_grad()
    def rollout(
        self,
        history: Tensor,  # [B, h, 3, H, W] in [0, 1]
        codes: Tensor | None,  # [B, T - 1, N, d]; None = no conditioning
        *,
        generator: torch.Generator,
        sampler: SamplerConfig | None = None,
        frames: int | None = None,  # T, needed when codes is None
        chunk: int = 1,
    ) -> Rollout:
        """Generate the frames after the history. Same generator state, same video."""
        sampler = sampler or SamplerConfig()
        given = history.shape[1]
        if codes is None:
            if frames is None or frames < given:
                raise ValueError(f"rollout without codes needs frames >= {given}, got {frames}")
            codes = history.new_zeros(history.shape[0], frames - 1, 1, 1)
            velocity_of = lambda _: self.velocity_under(None)  # noqa: E731
        else:
            velocity_of = lambda part: self.velocity_under(part, sampler.guidance)  # noqa: E731
        with _evaluating(self):
            latents = rollout(
                velocity_of,
                self.tokenizer.encode(history),
                codes,
                window=self.config.window,
                config=sampler,
                generator=generator,
                chunk=chunk,
            )
            video = self.tokenizer.decode(latents)
        return Rollout(torch.cat([history, video[:, given:].to(history.dtype)], dim=1), given)

    def compile_parts(self) -> None:
        """torch.compile what runs in a training step, each part as one full graph."""
        for name in ("idm", "conditioner", "backbone", "fdm"):
            if hasattr(self, name):
                getattr(self, name).compile(fullgraph=True, dynamic=False)


class _evaluating:
    """Evaluation mode inside the block, each module's own mode restored after it."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, module.training) for module in model.modules()]
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modules:
            module.training = training
