"""The aligner: from the features of a frame and a latent action, how the features change to the next frame.

The features are the tokenizer's latents, which nothing trains. Where the tokenizer is a VAE they are its latents; at
nano size it is space-to-depth, so that there they are pixels, scaled. Latent action models that predict in a
frozen feature space: UniVLA (Bu et al. 2025, DINOv2), LAOM (Nikulin et al. 2025). No optical flow.
Not here: what is minimised (training/objectives.py).
"""

from __future__ import annotations

from torch import Tensor

from colaworld.models.latent_action.config import AlignerConfig
from colaworld.models.latent_action.fdm import PatchPredictor


class Aligner(PatchPredictor):
    """Predicts the difference of neighbouring latents from the earlier one and the actions between."""

    def __init__(
        self,
        config: AlignerConfig,
        *,
        channels: int,
        actions_per_frame: int,
        tokens: int,
        dim: int,
    ) -> None:
        super().__init__(config, channels=channels, dim=actions_per_frame * tokens * dim)
        self.actions_per_frame = actions_per_frame

    def forward(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] and codes [B, r (T - 1), N, d] -> differences [B, C, T - 1, h, w].

        Raises ValueError where latents are not whole patches, or actions not r of each transition.
        """
        steps = latents.shape[2] - 1
        if codes.shape[1] != steps * self.actions_per_frame:
            raise ValueError(
                f"aligner: expected {steps * self.actions_per_frame} actions for {steps + 1} latent "
                f"frames, got {codes.shape[1]}"
            )
        h, w, patch = *latents.shape[3:], self.config.patch
        if h % patch or w % patch:
            raise ValueError(
                f"aligner: latents {h}x{w} are not whole patches of {patch} (model.parts.aligner.patch)"
            )
        packed = codes.reshape(codes.shape[0], steps, 1, -1)  # [B, T - 1, 1, r N d]
        return self.predict(latents[:, :, :-1].transpose(1, 2), packed).transpose(1, 2)
