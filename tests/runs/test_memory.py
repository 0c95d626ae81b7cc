"""The planner: every phase of a run without allocating it, and what it advises."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from colaworld.cli import plan_memory as verb
from colaworld.cli.main import main
from colaworld.config import ConfigError, to_yaml
from colaworld.models.latent_action.quantizers import QUANTIZERS
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.runs.build import build_trainer
from colaworld.runs.memory import GIB, advise, plan_memory, usable

TINY_VAE = OpenSoraVAEConfig(
    channels=12,
    image_widths=(8, 8),
    image_layers=1,
    temporal_width=8,
    temporal_multipliers=(1, 1),
    temporal_layers=1,
    temporal_halve=(False,),
    groups=4,
    shift=(0.0,) * 12,
    scale=(1.0,) * 12,
)


@pytest.fixture
def sized(tiny):
    """sized(recipe, **training) -> a tiny run whose frames have a size."""

    def make(name: str = "nano.cola", **training):
        config = tiny(name)
        data = replace(config.data, path=None, height=32, width=32)
        return replace(config, data=data, training=replace(config.training, **training))

    return make


SMALL = ["--data.height", "28", "--data.width", "36"]
SMALL += [f"--model.{part}.depth=1" for part in ("backbone", "idm", "conditioner")]


def test_phases_of_a_run_by_kind(sized) -> None:
    config = sized(ema_decay=0.9, accumulate=2, autocast="none")
    warmup, joint = plan_memory(config, device="cpu")
    assert (warmup.phase, joint.phase) == ("warmup", "joint")
    assert warmup.parameters == joint.parameters
    assert warmup.gradients < joint.gradients < joint.parameters
    for phase in (warmup, joint):
        # float32 everywhere: two moments and one average for one gradient
        assert phase.optimizer == pytest.approx(2 * phase.gradients, rel=0.01)
        assert phase.average == phase.gradients
        assert phase.total > phase.activations > 0
    alone = plan_memory(config, phases=("joint",), device="cpu")
    assert alone == (joint,)


@pytest.mark.parametrize("recipe", ["nano.two_stage", "nano.pretrain"])
def test_other_phases_too(sized, recipe) -> None:
    """A second clip takes activations and nothing else."""
    one, two = (plan_memory(sized(recipe, batch_size=clips)) for clips in (1, 2))
    for few, many in zip(one, two, strict=True):
        assert (few.parameters, few.optimizer) == (many.parameters, many.optimizer)
        assert 0 < few.activations < many.activations


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_can_be_planned(sized, kind) -> None:
    config = sized()
    model = replace(
        config.model, idm=replace(config.model.idm, dim=2), quantizer=QUANTIZERS[kind].config()
    )
    for phase in plan_memory(replace(config, model=model)):
        assert phase.activations > 0


@pytest.mark.slow
def test_what_changes_the_numbers(sized) -> None:
    def joint(device: str = "cpu", cached: bool = False, tokenizer=None, **training):
        config = sized(**training)
        if tokenizer is not None:
            model = replace(config.model, tokenizer=tokenizer)
            data = replace(config.data, frames_per_clip=9)
            config = replace(config, model=model, data=data)
        if cached:
            whole = replace(config.objective, augment=False)
            config = replace(config, latents="cache", objective=whole)
        return plan_memory(config, phases=("joint",), device=device)[0]

    base = joint(batch_size=4)
    assert joint(batch_size=8).activations > 1.8 * base.activations
    assert joint(batch_size=8).parameters == base.parameters
    assert joint(batch_size=4, recompute="blocks").activations < base.activations
    assert joint(batch_size=4, accumulate=2).gradients > base.gradients
    assert joint(batch_size=4, ema_decay=0.9).average > base.average == 0
    on_gpu = joint("cuda", batch_size=4, autocast="none")
    assert on_gpu.activations > base.activations  # queries and keys of the spatial axis
    vae = joint(batch_size=2, tokenizer=TINY_VAE)
    cached = joint(batch_size=2, tokenizer=TINY_VAE, cached=True)
    assert vae.tokenizer > cached.tokenizer > 0  # its weights are there, nothing is encoded
    assert vae.parameters == cached.parameters


def test_an_alarm_that_goes_back_to_another_phase_takes_no_memory(sized) -> None:
    """Each phase is planned by itself, where the one to warm up in again is not there."""
    config = sized()
    alarm = replace(config.phases["joint"].alarm, action="rollback")
    (plain,) = plan_memory(config, phases=("joint",), device="cpu")
    assert plan_memory(
        config.with_phase("joint", alarm=alarm), phases=("joint",), device="cpu"
    ) == (plain,)


def test_it_stops_at_what_a_run_would_stop_at(sized) -> None:
    config = sized()
    with pytest.raises(
        ConfigError, match=r"takes its frames as .* --data PATH, .*--data\.height 64"
    ):
        plan_memory(replace(config, data=replace(config.data, height=None, width=None)))
    with pytest.raises(ConfigError, match="not whole patches"):
        plan_memory(replace(config, data=replace(config.data, height=30, width=30)))
    with pytest.raises(ValueError, match="device: expected 'cuda' or 'cpu', got 'tpu'"):
        plan_memory(config, device="tpu")


def test_frames_as_recorded_are_asked_of_the_data(tiny) -> None:
    config = tiny()  # films of 24x32 px
    as_told = replace(config.data, path=None, height=24, width=32)
    assert plan_memory(config) == plan_memory(replace(config, data=as_told))


def test_what_a_card_has_for_tensors() -> None:
    """Some 20 of the 24 GB of a card as it is sold: less than its own GiB, more than four fifths."""
    for sold in (24, 48, 80, 141):
        assert 0.8 * sold * 1e9 < usable(sold) < sold * 1e9
    # What CUDA, the allocator and fragments keep weighs more on a small card.
    assert usable(24) / 24 < usable(48) / 48 < usable(80) / 80 < usable(141) / 141


@pytest.mark.slow
def test_advice_comes_in_order_keeps_the_batch_and_fits(sized) -> None:
    config = sized(batch_size=6, accumulate=2, ema_decay=0.9, autocast="none")
    largest = max(phase.total for phase in plan_memory(config))
    assert list(advise(config, largest)) == []
    everything = list(advise(config, 1))
    assert [change.flags.split()[0] for change in everything] == [
        "--training.autocast",
        "--training.batch-size",  # 6 -> 3
        "--training.recompute",
        "--training.batch-size",  # 3 -> 1
        "--training.ema-decay",
    ]
    totals = [change.total for change in everything]
    assert totals == sorted(totals, reverse=True) and totals[0] <= largest
    for change in everything:
        training = change.config.training
        assert training.batch_size * training.accumulate == 12
    limit = totals[2]
    some = list(advise(config, limit))
    assert len(some) == 3
    last = some[-1]
    assert max(p.total for p in plan_memory(last.config)) <= limit


@pytest.mark.slow
def test_advice_on_a_learned_tokenizer(sized) -> None:
    config = sized(batch_size=1, recompute="blocks")
    config = replace(
        config,
        model=replace(config.model, tokenizer=TINY_VAE),
        data=replace(config.data, frames_per_clip=9),
    )
    changes = list(advise(config, 1))
    assert [change.flags for change in changes] == ["--model.tokenizer.dtype bfloat16"]
    assert changes[0].config.model.tokenizer.dtype == "bfloat16"
    # A cache of latents comes after it, and is not advised where encoding is not the peak.


def test_the_verb_prints_a_table_and_writes_numbers(capsys, tmp_path) -> None:
    file = tmp_path / "deep" / "plan.json"
    assert main(["plan-memory", "nano.cola", *SMALL, "--gpu", "24", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "nano.cola: 8 clips an update in passes of 8, recompute none" in text
    assert text.count("fits") == 2
    numbers = json.loads(file.read_text())
    assert numbers["fits"] and [phase["phase"] for phase in numbers["phases"]] == [
        "warmup",
        "joint",
    ]
    for phase in numbers["phases"]:
        kinds = ("parameters", "gradients", "optimizer", "average", "activations")
        assert phase["total"] == sum(phase[kind] for kind in kinds)


@pytest.mark.slow
def test_the_verb_says_what_to_switch_on(capsys, monkeypatch) -> None:
    monkeypatch.setattr(verb, "usable", lambda _: 20 << 20)  # a card of nano size
    call = ["plan-memory", "nano.cola", *SMALL]
    assert main(call) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text and "What to switch on" in text
    assert "Fits with: --training." in text
    flags = text.split("Fits with: ")[1].split()
    assert main([*call, *flags]) == 0


def test_wrong_calls(capsys) -> None:
    assert main(["plan-memory"]) == 2
    assert main(["plan-memory", "nano.cola", "--preset", "24"]) == 2
    assert "nano.cola has none" in capsys.readouterr().err
    assert main(["plan-memory", "nano.cola", *SMALL, "--gpu", "1"]) == 2
    assert "--gpu: expected GB of a card, more than 1, got 1" in capsys.readouterr().err
    assert logging.getLogger("colaworld.ops").level == logging.NOTSET  # others are told again
    for size in ("nan", "inf", "0"):
        assert main(["plan-memory", "nano.cola", *SMALL, "--gpu", size]) == 2
        assert "--gpu: expected" in capsys.readouterr().err


_PLANNED_ALONE = """
import resource, sys
from pathlib import Path
from colaworld.config import load_yaml
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import plan_memory

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

config = load_yaml(Path(sys.argv[1]), RunConfig)
plan_memory(config, phases=("warmup",), device="cpu")  # what it imports is not counted
before = peak()
(joint,) = plan_memory(config, phases=("joint",), device="cpu")
print(joint.total, peak() - before)
"""


@pytest.mark.slow
def test_nothing_is_allocated(sized, tmp_path) -> None:
    """A run that would take a hundred times this process's memory is planned in it."""
    config = sized(batch_size=16_384, autocast="none")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    # A process of its own, since the peak of this one is that of all tests before.
    done = subprocess.run(
        [sys.executable, "-c", _PLANNED_ALONE, str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    total, grown = map(int, done.stdout.split()[-2:])
    assert total > 20 * GIB
    assert grown < 0.2 * GIB


def test_a_run_that_recomputes_learns_the_same_bits(tiny, tmp_path) -> None:
    weights = {}
    for choice in ("none", "blocks"):
        config = tiny()
        settings = replace(config.training, recompute=choice, max_steps=2, accumulate=2)
        trainer = build_trainer(replace(config, training=settings), out=tmp_path / choice)
        assert trainer.run().status == "finished"
        weights[choice] = trainer.model.state_dict()
    assert weights["none"].keys() == weights["blocks"].keys()
    different = [k for k, v in weights["none"].items() if not torch.equal(v, weights["blocks"][k])]
    assert not different


def test_flops_of_a_pass_are_those_of_its_products(sized) -> None:
    """Three times a forward pass where all trains: once forward, twice backward."""
    config = sized(autocast="none", batch_size=2)
    warmup, joint = plan_memory(config, device="cpu")
    (double,) = plan_memory(sized(autocast="none", batch_size=4), phases=("joint",), device="cpu")
    assert double.flops == pytest.approx(2 * joint.flops, rel=0.01)
    assert (
        0.6 * joint.flops < warmup.flops < joint.flops
    )  # the frozen generator has no weight gradients
