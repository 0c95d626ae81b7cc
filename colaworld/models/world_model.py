"""The CoLA world model: a latent action model and a video generator that condition each other.

    frames --idm--> z --quantizer--> codes --conditioner--> modulation --backbone--> velocity

The direct children are the parameter groups that training phases name: `tokenizer`, `backbone`, and
the parts of `parts.py`: `idm`, `quantizer`, `conditioner`, for the two-stage baseline `fdm`, yours.
Not here: losses and phases (training), samplers (flow), rollouts (world.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from colaworld.contracts import LatentActions
from colaworld.models.adapters.action_head import ActionHead
from colaworld.models.adapters.adapter import Adapter
from colaworld.models.backbones import Backbone, build_backbone
from colaworld.models.conditioning import ActionConditioner
from colaworld.models.config import ModelConfig
from colaworld.models.inputs import checked_indices
from colaworld.models.latent_action.aligner import Aligner
from colaworld.models.latent_action.fdm import ForwardDynamicsModel
from colaworld.models.latent_action.idm import InverseDynamicsModel
from colaworld.models.latent_action.quantizers import (
    Quantized,
    Quantizer,
)
from colaworld.models.layers.attention import use_backend
from colaworld.models.parts import PARTS, build_order
from colaworld.models.tokenizers import Tokenizer, build_tokenizer

_COMPARED = 4096  # entries of a codebook that codes are compared with


class WorldModel(nn.Module):
    """See the module's docstring. `parts` says what is built besides tokenizer and backbone."""

    tokenizer: Tokenizer
    backbone: Backbone
    idm: InverseDynamicsModel
    quantizer: Quantizer
    conditioner: ActionConditioner
    fdm: ForwardDynamicsModel
    aligner: Aligner
    adapter: Adapter
    action_head: ActionHead

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        parts: tuple[str, ...] = ("idm", "quantizer", "conditioner"),
        tokenizer: Tokenizer | None = None,  # one made already, in place of config.tokenizer
    ) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        order = build_order(parts)
        if config.backbone.text == "full":
            raise ValueError(
                "model.backbone.text: a world model is given no captions, got 'full'; use 'null' (the "
                "null caption) or 'removed'"
            )
        self.tokenizer = build_tokenizer(config.tokenizer) if tokenizer is None else tokenizer
        if tokenizer is None and getattr(config.tokenizer, "path", ""):
            _leave_out_of_state(self)
        self.backbone = build_backbone(config.backbone)
        if self.tokenizer.channels != self.backbone.channels:
            raise ValueError(
                f"the generator takes latents of {self.backbone.channels} channels "
                f"(model.backbone.in_channels), the tokenizer makes {self.tokenizer.channels}"
            )
        for name in order:
            setattr(self, name, PARTS[name].build(config.of(name), self))
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
        with evaluating(self):
            first = self.quantize(frames[:, :window])
            codes, indices = [first.codes], [first.indices]
            for end in range(window + 1, frames.shape[1] + 1):
                later = self.quantize(frames[:, end - window : end])
                codes.append(later.codes[:, -1:])
                indices.append(None if later.indices is None else later.indices[:, -1:])
        whole = None if indices[0] is None else torch.cat(indices, dim=1)  # type: ignore[arg-type]
        return LatentActions(torch.cat(codes, dim=1), whole)

    def encode_actions(self, actions: Tensor, frames: Tensor | None = None) -> LatentActions:
        """The adapter's codes of real actions, with their graph, and the entries nearest to them.

        Args:
            actions: classes int64 [B, T - 1], or floats [B, T - 1, A] in the data's units.
            frames: [B, T, 3, H, W] in [0, 1], or the first T - 1 of them, where the adapter looks.
        """
        codes = self.adapter(actions, None if frames is None else self.seen_frames(frames, actions))
        indices = self.nearest(codes)
        if self.adapter.config.quantise:
            if indices is None:
                raise ValueError(
                    "model.parts.adapter.quantise: there is no codebook, or one of more than "
                    f"{_COMPARED} entries, to take the nearest code of; leave it off"
                )
            codes = codes + (self.quantizer.lookup(indices).to(codes.dtype) - codes).detach()
        return LatentActions(codes, indices)

    def seen_frames(self, frames: Tensor, actions: Tensor | None = None) -> Tensor:
        """[B, T - 1, 3, H, W]: for each action the latest of the frames [B, T or T - 1, ...] that is
        there when acting: the last one of the latent frame before."""
        steps = frames.shape[1] - 1 if actions is None else actions.shape[1]
        r = self.tokenizer.temporal_stride
        return frames[:, torch.arange(steps, device=frames.device) // r * r]

    @property
    def watched_codebook_size(self) -> int | None:
        """Entries of the codebook, where `nearest` can compare with all of them."""
        size = self.codebook_size
        return size if size is not None and size <= _COMPARED else None

    @torch.no_grad()
    def nearest(self, codes: Tensor) -> Tensor | None:
        """Entries of the codebook [...] nearest to codes [..., d]; None where there is no codebook, or
        one of more than 4096 entries."""
        size = self.watched_codebook_size
        if size is None:
            return None
        table = self.quantizer.lookup(torch.arange(size, device=codes.device)).float()
        return torch.cdist(codes.float().flatten(0, -2), table).argmin(-1).view(codes.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes [..., N, d] of codebook indices [..., N], whose values are not looked at: `World` does.

        Raises ValueError on another dtype or shape, and where there is no codebook.
        """
        size, tokens = self.codebook_size, self.tokens
        return self.quantizer.lookup(
            checked_indices(indices, tokens=tokens, size=size, values=False)
        )

    def velocity(
        self,
        latents: Tensor,  # [B, C, T, h, w]
        times: Tensor,  # [B, T]
        codes: Tensor | None = None,  # [B, r (T - 1), N, d]; None = the plain video model
        drop: Tensor | None = None,  # [B, r (T - 1)] or [.., N] bool: use the null action there
        *,
        fps: Tensor | float | None = None,  # frames/s of the clips, [B]; None: the backbone's own
    ) -> Tensor:
        """The generator's velocity under latent actions."""
        modulation = None if codes is None else self.conditioner(codes, drop)
        return self.backbone.velocity(latents, times, modulation=modulation, fps=fps)

    def compile_parts(self) -> None:
        """torch.compile what runs in a training step, each part as one full graph."""
        for name, child in self.named_children():
            if name == "backbone" or (name in PARTS and PARTS[name].compile):
                child.compile(fullgraph=True, dynamic=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, each module's own mode restored after it."""
    modules = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modules:
            module.training = training


TOKENIZER_MARK = "tokenizer.fingerprint"  # in a state_dict, in place of the weights of a tokenizer


def _leave_out_of_state(model: WorldModel) -> None:
    """Keep a tokenizer that its configuration names by path out of every state_dict, so that
    checkpoints do not carry hundreds of megabytes that never change. Its fingerprint stands there
    instead, and another one is refused when the state is loaded."""
    mark: list[Tensor] = []  # made once: it reads all weights

    def own() -> Tensor | None:
        if any(value.device.type == "meta" for value in model.tokenizer.state_dict().values()):
            return None
        if not mark:
            mark.append(torch.tensor(list(model.tokenizer.fingerprint().encode())).byte())
        return mark[0].clone()

    def saved(_module: nn.Module, state: dict, before: str, _metadata: dict) -> None:
        for key in [key for key in state if key.startswith(before + "tokenizer.")]:
            del state[key]
        found = own()
        if found is not None:
            state[before + TOKENIZER_MARK] = found

    def loading(_module: nn.Module, state: dict, before: str, *_: object) -> None:
        check_tokenizer(
            state.pop(before + TOKENIZER_MARK, None), own(), model.config.tokenizer.path
        )

    def loaded(_module: nn.Module, keys: object) -> None:
        missing = keys.missing_keys  # type: ignore[attr-defined]
        missing[:] = [key for key in missing if not key.startswith("tokenizer.")]

    model.register_state_dict_post_hook(saved)
    model.register_load_state_dict_pre_hook(loading)
    model.register_load_state_dict_post_hook(loaded)


def check_tokenizer(stored: Tensor | None, own: Tensor | None, path: str) -> None:
    """ValueError where what was trained with another tokenizer is loaded. None: not known."""
    if stored is None or own is None or torch.equal(stored.cpu(), own):
        return
    then, now = (bytes(mark.tolist()).decode(errors="replace") for mark in (stored, own))
    raise ValueError(
        f"model.tokenizer.path: {path} is not the tokenizer that these weights were trained with: "
        f"expected {then}, got {now}"
    )
