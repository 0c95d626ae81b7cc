"""The action contract as a value: what it refuses, its hash, its way through YAML."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.config import ConfigError, from_dict, load_yaml, to_dict, to_yaml
from colaworld.contracts import ActionSpec
from colaworld.runs.config import RunConfig

STATISTICS = Normaliser(
    "mean_std", 10, (1.0, 2.0), (0.5, 4.0), (0.0, -8.0), (2.0, 8.0), (0.1, -7.0), (1.9, 6.0)
)
ARM = ActionContract(
    *("action", "continuous", 2, ("x", "y"), ("m", "rad"), "absolute", "base"),
    rate=10.0,
    normaliser=STATISTICS,
)
KEYS = ActionContract(
    "action", "discrete", 2, ("left", "right"), normaliser=Normaliser(count=5, counts=(2, 3))
)


@pytest.mark.parametrize("contract", [ARM, KEYS, None])
def test_comes_back_from_yaml_and_json(tmp_path, contract) -> None:
    run = replace(RunConfig(), action_contract=contract)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert load_yaml(tmp_path / "run.yaml", RunConfig) == run
    if contract is not None:
        assert from_dict(ActionContract, to_dict(contract)).hash == contract.hash


def test_the_hash_changes_with_every_field() -> None:
    changed = [
        *(replace(ARM, **{k: v}) for k, v in {
            "column": "actions", "names": ("y", "x"), "units": ("rad", "m"), "mode": "relative",
            "frame": "world", "rate": 30.0,
        }.items()),
        *(replace(ARM, normaliser=replace(STATISTICS, **{k: v})) for k, v in {
            "kind": "none", "count": 11, "mean": (1.0, 2.1), "std": (0.5, 4.1), "low": (0.0, -9.0),
            "high": (2.0, 9.0), "q01": (0.1, -7.1), "q99": (1.9, 6.1),
        }.items()),
        replace(ARM, size=1, names=("x",), units=("m",), normaliser=Normaliser()),
        KEYS,
        replace(KEYS, normaliser=Normaliser(count=5, counts=(3, 2))),
    ]  # fmt: skip
    assert len({one.hash for one in (ARM, *changed)}) == len(changed) + 1
    assert len(ARM.hash) == 16 and int(ARM.hash, 16) >= 0
    almost = replace(STATISTICS, mean=(1.0 + 1e-9, 2.0))  # another order of summation
    assert replace(ARM, normaliser=almost).hash == ARM.hash


def test_scales_by_the_statistics_that_it_names() -> None:
    assert STATISTICS.shift_and_scale() == ((1.0, 2.0), (0.5, 4.0))
    by_ends = replace(STATISTICS, kind="min_max").shift_and_scale()
    assert by_ends == ((1.0, 0.0), (1.0, 8.0))
    by_quantiles = replace(STATISTICS, kind="quantile").shift_and_scale()
    assert by_quantiles == (pytest.approx((1.0, -0.5)), pytest.approx((0.9, 6.5)))
    still = replace(STATISTICS, std=(0.5, 0.0)).shift_and_scale()
    assert still == ((1.0, 2.0), (0.5, 1.0))  # a channel that never changes is not divided by 0
    with pytest.raises(ConfigError, match=r"normaliser.kind: expected one that scales, got 'none'"):
        Normaliser().shift_and_scale()


def test_a_stride_lays_the_actions_between_two_frames_side_by_side() -> None:
    made = ARM.every(2)
    assert (made.size, made.rate) == (4, 5.0)
    assert made.names == ("x+0", "y+0", "x+1", "y+1") and made.units == ("m", "rad", "m", "rad")
    assert made.normaliser.mean == (1.0, 2.0, 1.0, 2.0) and made.normaliser.count == 10
    assert made.spec == ARM.spec.every(2) and isinstance(made.spec, ActionSpec)
    assert ARM.every(1) == ARM


def test_is_told_in_a_line() -> None:
    said = "column 'action', channels x (m), y (rad), absolute, base, 10 Hz; contract "
    assert ARM.told() == said + ARM.hash
    assert KEYS.told() == f"column 'action', 2 classes: left, right; contract {KEYS.hash}"


def test_refuses_what_no_action_has() -> None:
    with pytest.raises(ValueError, match=r"ActionContract.rate: expected > 0 or None, got 0"):
        replace(ARM, rate=0.0)
    with pytest.raises(ValueError, match=r"normaliser.mean: expected 2 values .*, got 1"):
        replace(ARM, normaliser=Normaliser(mean=(1.0,)))
    with pytest.raises(ValueError, match=r"normaliser.counts: expected 0 values .* got 2"):
        replace(ARM, normaliser=Normaliser(counts=(1, 1)))
    with pytest.raises(ConfigError, match=r"normaliser.q01: kind 'quantile' needs it, got none"):
        Normaliser("quantile")
    with pytest.raises(ConfigError, match=r"normaliser.mean\[0\]: expected a finite number"):
        Normaliser(mean=(float("nan"),))
