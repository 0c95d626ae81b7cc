"""Noise over the steps of a plan: coloured (iCEM) and correlated (MPPI). Not here: what it is added to."""

from __future__ import annotations

import torch
from torch import Tensor


def coloured(
    shape: tuple[int, int, int, int], colour: float, *, generator: torch.Generator
) -> Tensor:
    """Normal noise [B, n, h, A] whose power over the h steps falls as 1 / frequency^colour.

    Every step has variance 1. The lowest frequency, a constant, has the power of one cycle in h steps.
    Spectrum after Timmer and Koenig (1995), as iCEM takes it (Pinneri et al. 2020, arXiv 2008.06389,
    section 3.1).
    """
    B, n, h, A = shape
    device = generator.device
    frequency = torch.fft.rfftfreq(h, device=device).clamp_min(1 / h)
    size = frequency ** (-colour / 2)
    parts = torch.randn((2, B, n, A, len(size)), generator=generator, device=device)
    # A step is the sum of 2 size cos over inner frequencies; the ends of the spectrum are real.
    ends = torch.zeros(len(size), dtype=torch.bool, device=device)
    ends[0] = True
    ends[-1] |= h % 2 == 0
    spectrum = torch.complex(parts[0] * torch.where(ends, 2**0.5, 1.0), parts[1] * ~ends) * size
    variance = torch.where(ends, 2.0, 4.0) @ size**2 / h**2
    noise = torch.fft.irfft(spectrum, n=h) / variance.sqrt()
    return noise.transpose(-1, -2)


def correlated(
    shape: tuple[int, int, int, int], beta: float, *, generator: torch.Generator
) -> Tensor:
    """Noise [B, n, h, A]: e_0 = u_0, e_t = beta e_(t-1) + (1 - beta) u_t, with u standard normal.

    So its variance falls from 1 towards (1 - beta) / (1 + beta), as in VP2 (Tian et al. 2023, arXiv
    2304.13723: its CorrelatedNoiseSampler). PDDM (Nagabandi et al. 2019, arXiv 1909.11652, equation 4) names the other
    weight beta, and begins with e_0 = (1 - beta) u_0: its variance rises to the same.
    """
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    steps = [drawn[:, :, 0]]
    for fresh in drawn.unbind(2)[1:]:
        steps.append(beta * steps[-1] + (1 - beta) * fresh)
    return torch.stack(steps, dim=2)
