"""Quantizers that own one codebook [K, d]: gradient VQ, EMA VQ, NSVQ.

Not here: several codebooks in a row (residual.py), where one starts (kmeans.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.contracts import ResetRows
from colaworld.models.latent_action.quantizers.config import CodebookConfig, EMAConfig, VQConfig
from colaworld.models.latent_action.quantizers.estimators import ESTIMATORS
from colaworld.models.latent_action.quantizers.kmeans import kmeans, kmeans_pp
from colaworld.models.latent_action.quantizers.quantizer import BatchStats, Quantized, Quantizer
from colaworld.models.latent_action.quantizers.step_stats import (
    StepStats,
    gather_rows,
    offered,
    take_first,
)
from colaworld.ops import code_statistics, update_codebook, vector_quantize
from colaworld.rng import draw

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_RECENT = 1024  # latents kept while they pass unquantised, and of a step that re-seeds


class CodebookQuantizer(Quantizer):
    """Search, use of codes, re-seeding; how the codebook learns is the subclass's."""

    config: CodebookConfig
    codebook_size: int
    codebook: Tensor  # [K, d]
    use: Tensor  # [K]
    age: Tensor
    recent: Tensor  # [_RECENT, d]
    kept: Tensor

    learned = True  # the codebook is a parameter (else a buffer)
    undecayed = ("codebook",)  # parameters the optimizer must not pull towards zero

    def __init__(self, config: CodebookConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.codebook_size = size = config.codebook_size
        table = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if self.learned:
            self.codebook = nn.Parameter(table)
        else:
            self.register_buffer("codebook", table)
        self.register_buffer("use", torch.full((size,), 1 / size))  # smoothed share of each code
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        self._steps_read: int | None = None
        if config.unquantized_steps:  # latents of the latest steps, to start the codebook from
            self.register_buffer("recent", torch.zeros(_RECENT, dim))
            self.register_buffer("kept", torch.zeros((), dtype=torch.int64))  # rows written to it
        self._anew = (
            False  # whether the next start is one from data, whatever the configuration says
        )
        # Every code may be dead at once, and each wants a latent of its own.
        self._pending = StepStats(capacity=max(_RECENT, size))

    def _load_from_state_dict(self, *arguments, **options) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._steps_read = None

    def begin_step(self) -> None:
        super().begin_step()
        if self.config.reseed or self.config.unquantized_steps:  # else nothing asks
            self._steps_read = int(self.age)

    @property
    def _steps(self) -> int:
        """`age` on the host. Read once a step, in `begin_step`: between it and `after_step` nothing waits
        for the device, so that a CUDA graph can hold the passes."""
        return int(self.age) if self._steps_read is None else self._steps_read

    def _count_step(self) -> None:
        self.age += 1
        self._steps_read = None

    @property
    def continuous(self) -> bool:
        """Whether latents still pass unquantised (see `unquantized_steps`)."""
        steps = self.config.unquantized_steps
        return steps > 0 and self._steps < steps

    @property
    def _reseeds(self) -> bool:
        """Whether the current step ends with a re-seeding."""
        return self.config.reseed and (self._steps + 1) % self.config.reseed_every == 0

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        if not self.continuous:
            return self._quantize_to_codes(z, generator)
        seen = BatchStats(z.detach().reshape(-1, self.dim)) if self.training else None
        if self.training and self.config.unquantized_noise > 0:
            noise = draw(torch.randn, z.shape, generator, device=z.device, dtype=z.dtype)
            z = z + self.config.unquantized_noise * noise
        return Quantized(z, None, z.new_zeros(()), seen)

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        raise TypeError(f"{type(self).__name__} must implement _quantize_to_codes")

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)

    def _search(self, z: Tensor) -> tuple[Tensor, Tensor, BatchStats | None]:
        """The nearest codes of z [..., d], their indices [...], what is to be observed."""
        flat = z.reshape(-1, self.dim)
        codes, indices = vector_quantize(flat, self.codebook)
        seen = BatchStats(flat.detach(), indices) if self.training else None
        return codes.view_as(z), indices.view(z.shape[:-1]), seen

    def set_process_group(self, group: ProcessGroup | None) -> None:
        if hasattr(self.codebook, "full_tensor"):  # a DTensor
            raise TypeError(
                "quantizer: the codebook is sharded over processes; keep it replicated, since "
                "re-seeding writes single rows of it on every process"
            )
        super().set_process_group(group)

    def restart(self) -> None:
        super().restart()
        self._anew = True

    @torch.no_grad()
    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        super().start(z, generator=generator)
        if self.config.data_start or self._anew:
            self._anew = False
            self.use.fill_(1 / self.codebook_size)
            was = self.training
            self.eval()
            z = gather_rows(self.standardise(z.float()), self.process_group)
            self.train(was)
            flat = z.reshape(-1, self.dim)
            self._start_from(kmeans_pp(flat, self.codebook.shape[0], generator))
        else:
            self._started()

    def _observe(self, seen: BatchStats, generator: torch.Generator | None) -> None:
        super()._observe(seen, generator)
        if seen.indices is not None:
            size = self.codebook.shape[0]
            self._pending.add_statistics(code_statistics(seen.latents, seen.indices, size))
        if seen.indices is None or self._reseeds:
            self._pending.add_latents(seen.latents, generator)

    def _local_stats(self, generator: torch.Generator | None) -> list[Tensor]:
        pieces, pending = super()._local_stats(generator), self._pending
        if pending.statistics is not None:
            pieces.append(pending.statistics)
            if self._reseeds:
                pieces.append(pending.offer(self.codebook.shape[0], self.process_group))
        elif pending.latents is not None:
            pieces.append(pending.offer(_RECENT, self.process_group))
        return pieces

    def _apply_stats(
        self, pieces: Iterator[Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, float], ResetRows]:
        super()._apply_stats(pieces, generator)
        if self._pending.statistics is None:
            if self._pending.latents is not None:
                self._remember(offered(next(pieces)), generator)
            return {}, []
        packed, reseeds = next(pieces), self._reseeds
        counts = packed[:, -1]
        self.use.lerp_(counts / counts.sum().clamp(min=1), 1 - max(0.9, self.config.decay))
        self._update(packed)
        self._count_step()
        if not reseeds:
            return {}, []
        return self._reseed(offered(next(pieces)))

    def _reseed(self, latents: Tensor) -> tuple[dict[str, float], ResetRows]:
        """Dead codes move onto latents [L, d]; the same on every process."""
        size = self.codebook.shape[0]
        dead = (self.use < self.config.reseed_below / size).nonzero().squeeze(1)
        if not len(dead) or not len(latents):
            return {"reseeded": 0.0}, []
        fresh = latents[torch.arange(len(dead), device=dead.device) % len(latents)]
        self.codebook[dead] = fresh
        self.use[dead] = 1 / size
        self._reseeded(dead, fresh)
        moved = [(self.codebook, dead)] if self.learned else []
        return {"reseeded": float(len(dead))}, moved

    def _remember(self, latents: Tensor, generator: torch.Generator | None) -> None:
        """A step of the continuous stretch; at its end the codebook starts from what was seen."""
        latents = latents[-_RECENT:]
        place = (int(self.kept) + torch.arange(len(latents), device=latents.device)) % _RECENT
        self.recent[place] = latents
        self.kept += len(latents)
        self._count_step()
        if not self.continuous:
            filled = min(int(self.kept), _RECENT)
            if filled == 0:
                raise ValueError(
                    "quantizer: no finite latent was seen in unquantized_steps, so the codebook "
                    "cannot start; the latent action model has diverged"
                )
            count = self.codebook.shape[0]
            self._start_from(kmeans(self.recent[:filled], count, generator))

    def _start_from(self, codes: Tensor) -> None:
        """Begin with codes [K, d], those of the first process: sums of clusters may differ by a rounding,
        and copies that begin apart stay so."""
        self.codebook.copy_(codes)
        take_first(self.codebook, self.process_group)
        self._started()

    def _started(self) -> None:
        """A subclass's own statistics after the codebook was set from data."""

    def _update(self, packed: Tensor) -> None:
        """A subclass's own statistics, from sums and counts [K, d + 1] of the step."""

    def _reseeded(self, dead: Tensor, fresh: Tensor) -> None:
        """A subclass's own statistics of moved codes."""


class GradientVQ(CodebookQuantizer):
    """Plain VQ with a learned codebook: 1.0 x codebook + beta x commitment (paper's default)."""

    config: VQConfig

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices, seen = self._search(z)
        loss = F.mse_loss(codes, z.detach()) + self.config.beta * F.mse_loss(z, codes.detach())
        return Quantized(ESTIMATORS[self.config.estimator](z, codes), indices, loss, seen)


class EMAVQ(CodebookQuantizer):
    """Codebook from running means of the latents (van den Oord et al. 2017, appendix A.1)."""

    config: EMAConfig
    count: Tensor  # [K]
    total: Tensor  # [K, d]

    learned = False

    def __init__(self, config: EMAConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.register_buffer("count", torch.ones(config.codebook_size))
        self.register_buffer("total", self.codebook.clone())

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices, seen = self._search(z)
        loss = self.config.beta * F.mse_loss(z, codes.detach())
        return Quantized(ESTIMATORS[self.config.estimator](z, codes), indices, loss, seen)

    def _started(self) -> None:
        self.count.fill_(1.0)
        self.total.copy_(self.codebook)

    def _update(self, packed: Tensor) -> None:
        update_codebook(self.codebook, self.count, self.total, packed, decay=self.config.decay)

    def _reseeded(self, dead: Tensor, fresh: Tensor) -> None:
        self.count[dead] = self.count.mean()
        self.total[dead] = fresh * self.count[dead][:, None]


class NSVQ(CodebookQuantizer):
    """Noise substitution (Vali & Backstrom 2022): the error's size with a random direction.

    Gradients reach encoder and codebook alike without a straight-through estimate and without
    auxiliary losses; evaluation uses the plain codes.
    """

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices, seen = self._search(z)
        if not self.training:
            return Quantized(codes, indices, z.new_zeros(()))
        noise = draw(torch.randn, z.shape, generator, device=z.device, dtype=z.dtype)
        error = (z - codes).norm(dim=-1, keepdim=True)
        substituted = z + error / (noise.norm(dim=-1, keepdim=True) + 1e-8) * noise
        return Quantized(substituted, indices, z.new_zeros(()), seen)
