"""Bytes of a step, counted: by hand, on tensors without storage as on real ones."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld.contracts import ClipBatch
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world_model import WorldModel
from colaworld.training.blocks import recompute_blocks
from colaworld.training.config import OBJECTIVES, ObjectiveConfig, TrainingConfig
from colaworld.training.memory import MemoryCount, trace_step
from colaworld.training.phases import Phase


def test_storages_are_counted_once_and_until_they_die() -> None:
    with MemoryCount() as count:
        x = torch.zeros(100)  # 400 bytes
        view = x[10:20].view(2, 5)
        view.add_(1)
        assert count.live["activations"] == 400
        y = x.double()  # 800
        count.name([y], "optimizer")
        assert count.live["optimizer"] == 800 and count.live["activations"] == 400
        count.name([y.view(10, 10)], "average")
        assert (count.live["optimizer"], count.live["average"]) == (0, 800)
        del y
        assert count.live["average"] == 0
        del x
        assert count.live["activations"] == 400  # the view holds it
        del view
        assert count.live["activations"] == 0
        assert count.peak == 1200
        count.begin()
        assert count.peak == 0


def test_blocks_of_an_allocator() -> None:
    with MemoryCount(granularity=512) as count:
        kept = [torch.empty(1), torch.empty(128), torch.empty(129)]
        assert count.live["activations"] == 512 + 512 + 1024
        assert len(kept) == 3


class Squares:
    """sum of (W x)^2 of frames: small enough to count by hand."""

    codebook_size = tokens = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def loss(self, batch, *, generator):
        x = batch.frames.float().flatten(1)  # [2, 48]: 384 bytes
        return self.model.part(x).square().sum(), {}

    def before_phase(self, batches, *, generator): ...

    def begin_step(self): ...

    def after_step(self, *, generator):
        return {}, []


def clips(count: int, frames: int, size: int) -> ClipBatch:
    number = torch.zeros(count, dtype=torch.int64)
    shape = (count, frames, 3, size, size)
    return ClipBatch(torch.zeros(shape, dtype=torch.uint8), episode=number, start=number)


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_byte_of_a_small_step_by_hand(fake, accumulate) -> None:
    weight, bias = 48 * 64 * 4, 64 * 4
    steps = 2 * 4  # AdamW counts the updates of each tensor in a float32
    with FakeTensorMode() if fake else contextlib.nullcontext(), MemoryCount() as count:
        model = nn.Module()
        model.part = nn.Linear(48, 64)
        phase = Phase("p", "o", ("part",), steps=2)
        training = TrainingConfig(ema_decay=0.9, accumulate=accumulate, clip_norm=0.0)
        batch = clips(2, 1, 4)
        trace_step(count, model, Squares(model), phase, training, batch, autocast=False)
        assert count.live["parameters"] == weight + bias
        assert count.at_peak["parameters"] == weight + bias
        assert count.at_peak["optimizer"] == 2 * (weight + bias) + steps
        assert count.at_peak["average"] == weight + bias
        # The peak is in the backward pass, where the bias's gradient has just been made and waits
        # with the weight's: frames (uint8) and their two numbers (int64), x, the gradient of the
        # product, both gradients; the loss, the loss / accumulate and the gradient it begins with.
        batch_bytes, x, product, scalars = 2 * 3 * 16 + 2 * 8, 2 * 48 * 4, 2 * 64 * 4, 3 * 4
        assert count.at_peak["activations"] == (batch_bytes + x + product + weight + bias + scalars)
        assert count.at_peak["gradients"] == (weight + bias if accumulate > 1 else 0)
        assert count.peak == sum(count.at_peak.values())
        assert count.live["gradients"] == weight + bias
    gc.collect()


SMALL = ModelConfig(
    backbone=STDiT3Config(depth=2, width=48, heads=2),
    idm=IDMConfig(depth=2, width=32, heads=2),
    quantizer=VQConfig(reseed=False),
    conditioner=ConditionerConfig(depth=1, heads=2),
)


@pytest.mark.parametrize(
    ("recompute", "bf16"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("objective", "train"),
    [
        ("cola", ("idm", "quantizer", "conditioner")),
        ("cola", ("idm", "quantizer", "conditioner", "backbone")),
        ("world", ("conditioner", "backbone")),
    ],
    ids=["warmup", "joint", "world"],
)
def test_a_step_without_storage_counts_what_a_real_one_does(
    objective, train, recompute, bf16
) -> None:
    """To the byte, in every kind: nothing that training allocates is missing on fake tensors."""
    counted = []
    for mode in (FakeTensorMode, contextlib.nullcontext):
        gc.collect()
        with mode(), MemoryCount() as count:
            model = WorldModel(SMALL)
            model.quantizer.observe = lambda *_, **__: None
            if recompute:
                recompute_blocks(model)
            config = ObjectiveConfig(history=(1, 2), augment=False)
            phase = Phase("p", objective, train, steps=2)
            trace_step(
                count,
                model,
                OBJECTIVES[objective](model, config),
                phase,
                TrainingConfig(ema_decay=0.9, accumulate=2),
                clips(2, 4, 16),
                autocast=bf16,
            )
            counted.append(count.at_peak)
            del model
    assert counted[0] == counted[1]
    assert all(counted[0].values())
