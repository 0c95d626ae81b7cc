"""Whole models and the joint step, dispatched as on a GPU (stand_in.py), against the reference ops.

test_route.py runs this file in a process whose compiled library is the stand-in's.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from stand_in import HostRead, NoHostReads, gpu

from colaworld import ops
from colaworld.contracts import ClipBatch
from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.training.config import ObjectiveConfig
from colaworld.training.objectives import ColaObjective

# Heads of 72 and 64 channels take the CUDA kernel, others Triton's.
BACKBONES = {
    "stdit3 72": STDiT3Config(depth=1, width=72, heads=1),
    "stdit3 32": STDiT3Config(depth=1, width=64, heads=2),
    "wan 64": WanConfig(layers=1, heads=1, head_dim=64, ffn=64),
}
ROUNDING = 2e-4  # relative error of a gradient in float32
FLOOR = 5e-4  # of all gradients together: what is smaller than that is noise in bfloat16


def world(backbone: str) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(
        ModelConfig(
            backbone=BACKBONES[backbone],
            idm=IDMConfig(depth=1, width=64, heads=1, tokens=2, motion=True),
            quantizer=VQConfig(data_start=False),
            conditioner=ConditionerConfig(depth=1, heads=1, dropout=0.0),
            window=3,
        )
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # what begins at zero would hide the rest
            if not parameter.any():
                parameter.normal_(0, 0.05, generator=draw)
    return model


def clips(T: int = 3) -> ClipBatch:
    frames = torch.randint(0, 256, (1, T, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return ClipBatch(frames.byte(), episode=torch.zeros(1).long(), start=torch.zeros(1).long())


def step(model: WorldModel, dtype: torch.dtype, watch=contextlib.nullcontext):
    """(loss, gradients by name) of a joint step; its codebook is updated."""
    objective = ColaObjective(model, ObjectiveConfig(augment=False, history=(1, 1)))
    batch, generator = clips(), torch.Generator().manual_seed(2)
    objective.begin_step()
    with watch():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, _ = objective.loss(batch, generator=generator)
        loss.backward()
    gradients = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    objective.after_step(generator=torch.Generator().manual_seed(3))
    return loss.detach(), gradients


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_joint_step(backbone) -> None:
    exact, model = (world(backbone) for _ in range(2))
    with ops.force("reference"):
        expected, wanted = step(exact, torch.float32)
    with gpu() as session:
        loss, found = step(model, torch.float32)
    assert session.launches, "nothing went to Triton"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert found.keys() == wanted.keys() and len(found) > 50
    total = torch.stack([g.norm() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= ROUNDING * (gradient.norm() + 1e-4 * total), name
    for name, state in exact.quantizer.state_dict().items():
        torch.testing.assert_close(
            model.quantizer.state_dict()[name], state, rtol=1e-4, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_joint_step_under_autocast(backbone) -> None:
    """In bfloat16, against float32: no further off than twice what the reference ops are."""
    found = {}
    with ops.force("reference"):
        found["exact"] = step(world(backbone), torch.float32)
        found["reference"] = step(world(backbone), torch.bfloat16)
    with gpu() as session:
        found["gpu"] = step(world(backbone), torch.bfloat16)
    assert any("bf16" in kind for ran in session.launches for kind in ran.dtypes.values())
    exact = found["exact"][1]
    total = torch.stack([g.norm() for g in exact.values()]).norm()
    for name, gradient in exact.items():
        wrong = {how: (found[how][1][name] - gradient).norm() for how in ("reference", "gpu")}
        assert wrong["gpu"] <= 2 * wrong["reference"] + FLOOR * total, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_joint_step_reads_nothing_on_the_host(backbone) -> None:
    """So that a CUDA graph can hold it: the loss and its gradients, up to the update."""
    with gpu():
        step(world(backbone), torch.bfloat16, watch=NoHostReads)


def test_a_host_read_is_found() -> None:
    with NoHostReads():
        with pytest.raises(HostRead):
            torch.ones(3).sum().item()
        with pytest.raises(HostRead):
            torch.ones(3)[torch.tensor([True, False, True])]
        torch.ones(3)[torch.tensor([0, 2])]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_rollout(backbone) -> None:
    """Past the window, so that the cache fills and slides."""
    model = world(backbone).eval()
    frames = clips().frames[:, :1].float() / 255
    codes = torch.randn(1, 4, 2, 8, generator=torch.Generator().manual_seed(4))
    made = []

    def run():
        draw = torch.Generator().manual_seed(5)
        return World(model, SamplerConfig(steps=2)).rollout(frames, codes, generator=draw)

    with torch.no_grad(), ops.force("reference"):
        made.append(run())
    with torch.no_grad(), gpu() as session:
        made.append(run())
    assert session.launches
    torch.testing.assert_close(made[1].frames, made[0].frames, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_rollout_reads_nothing_on_the_host(backbone) -> None:
    """Once it is checked what it was given, which reads values."""
    model = world(backbone).eval()
    frames = clips().frames[:, :1].float() / 255
    codes = torch.zeros(1, 4, 2, 8)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad(), gpu(), NoHostReads():
        state = World(model, SamplerConfig(steps=2))._begin(frames, codes[:, :0], generator=draw)
        for part in codes.split(1, dim=1):
            state.step(part)


@pytest.mark.parametrize("name", ["st_attention", "vector_quantize", "code_statistics"])
def test_the_cuda_ops_are_the_stand_ins(name) -> None:
    inputs = {
        "st_attention": torch.zeros(1, 3, 2, 3, 1, 72),
        "vector_quantize": torch.zeros(3, 8),
        "code_statistics": torch.zeros(3, 8),
    }
    with gpu():
        verdicts = ops.explain(name, inputs[name])
    assert [v.name for v in verdicts if v.would_run] == ["cuda"]


def displaced(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, one number behind an aligned address: what a view into a larger tensor has."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor).detach()


def _attention(axis: str, D: int):
    def run(qkv, q_weight, k_weight):
        return ops.st_attention(qkv, axis=axis, q_weight=q_weight, k_weight=k_weight)

    return run, ((2, 5, 3, 3, 2, D), (D,), (D,))


def _adaln(x, y, shift, scale, gate):
    return ops.adaln(x, y, gate=gate, shift=shift, scale=scale)


def _heads(q, k, q_weight, k_weight):
    return ops.qk_norm_rope(q, k, q_weight=q_weight, k_weight=k_weight)


def _packed(qkv, q_weight, k_weight):
    return ops.qkv_norm_rope(qkv, q_weight=q_weight, k_weight=k_weight)


# What is called, and the shapes of its arguments.
CALLS = {
    "temporal attention in CUDA": _attention("temporal", 72),
    "temporal attention in Triton": _attention("temporal", 32),
    # Behind it torch's attention runs, whose sums on a CPU may depend on the address.
    "qkv_norm_rope": (_packed, ((2, 15, 3, 2, 72), (72,), (72,))),
    "adaln": (_adaln, ((2, 3, 5, 72), (2, 3, 5, 72), *((2, 3, 72),) * 3)),
    "qk_norm_rope": (_heads, ((2, 7, 2, 72), (2, 7, 2, 72), (72,), (72,))),
    "vector_quantize": (ops.vector_quantize, ((70, 24), (9, 24))),
    "code_statistics": (lambda z: ops.code_statistics(z, torch.arange(70) % 9, 9), ((70, 24),)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_tensors_that_begin_at_an_odd_address(name, dtype) -> None:
    """Bit by bit what aligned ones give, the gradients too: nothing is read from beside them."""
    run, shapes = CALLS[name]
    draw = torch.Generator().manual_seed(6)
    drawn = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]

    def results(place) -> list[torch.Tensor]:
        inputs = [place(tensor).requires_grad_() for tensor in drawn]
        made = run(*inputs)
        made = [made] if isinstance(made, torch.Tensor) else list(made)
        wide = [m for m in made if m.requires_grad]
        grads = [
            place(torch.randn(m.shape, generator=torch.Generator().manual_seed(7)).to(m.dtype))
            for m in wide
        ]
        found = torch.autograd.grad(wide, inputs, grads, allow_unused=True) if wide else ()
        return made + [f for f in found if f is not None]

    assert displaced(drawn[0]).data_ptr() % 16 == dtype.itemsize
    with gpu():
        expected, found = results(torch.clone), results(displaced)
    with ops.force("reference"):
        plain = results(torch.clone)
    assert len(found) == len(expected) == len(plain)
    for f, e, p in zip(found, expected, plain, strict=True):
        assert torch.equal(f, e)
        assert (f.double() - p.double()).norm() <= 0.02 * p.double().norm()
