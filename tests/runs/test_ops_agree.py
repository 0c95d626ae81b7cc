"""The compiled ops and their references train alike, loss by loss, through every phase."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from colaworld import ops
from colaworld.recipes import recipe
from colaworld.runs.build import build_trainer

STEPS = 50
# Sums in another order differ by 1e-7 of their size; fifty updates of AdamW, which divides by the
# size of the gradient, may multiply that. Measured: below 3e-7.
TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(
    ops.build_info() is None, reason=f"no compiled ops: {ops.why_not_compiled()}"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano.pretrain", "nano.cola", "nano.two_stage"])
def test_fifty_steps_of_each_phase_agree(name, films, tmp_path) -> None:
    config = recipe(name)
    quantizer = replace(config.model.quantizer, unquantized_steps=0)
    config = replace(
        config,
        data=replace(config.data, path=films),
        model=replace(config.model, quantizer=quantizer),
        training=replace(
            config.training, batch_size=2, max_steps=STEPS, tensorboard=False, sample_every=0
        ),
    )
    losses = {}
    for implementation in ("cpu", "reference"):
        out = tmp_path / implementation
        with ops.force(implementation):
            assert build_trainer(config, out=out).run().status == "finished"
        rows = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        losses[implementation] = [(row["phase"], row["step"], row["loss"]) for row in rows]
    assert len(losses["cpu"]) == STEPS * len(config.schedule)
    worst = 0.0
    for (phase, step, ours), (_, _, reference) in zip(*losses.values(), strict=True):
        gap = abs(ours - reference) / reference
        worst = max(worst, gap)
        assert gap <= TOLERANCE, f"{phase} step {step}: {ours} against {reference}"
    print(f"{name}: largest relative difference {worst:.2e}")
