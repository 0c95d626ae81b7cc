"""The plan of a run on many GPUs, against sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from colaworld.cli import plan_scale as verb
from colaworld.cli.main import main
from colaworld.config import ConfigError
from colaworld.recipes import recipe
from colaworld.runs.memory import plan_memory
from colaworld.runs.scale import Cluster, Counts, PhaseScale, Traffic, count, plan_scale, traffic
from colaworld.training.cards import CARDS
from colaworld.training.config import ParallelConfig

H100 = next(card for card in CARDS if card.name == "h100")
COUNTS = Counts(
    {"backbone": 1000, "idm": 30, "quantizer": 5}, blocks=900, largest_block=300, sharded=True
)


@pytest.fixture
def sized(tiny):
    """sized(shard, **training) -> a tiny run whose frames have a size."""

    def make(shard: str = "no", *, replicas: int = 1, reshard: bool = True, **training):
        config = tiny("nano.cola")
        data = replace(config.data, path=None, height=32, width=32)
        parallel = ParallelConfig(shard=shard, replicas=replicas, reshard=reshard)
        training = {"batch_size": 8, "parallel": parallel, **training}
        return replace(config, data=data, training=replace(config.training, **training))

    return make


def test_traffic_by_hand(sized):
    config = sized("blocks", accumulate=3)
    joint = replace(config.phases["joint"], train=("idm", "quantizer", "backbone"))
    warmup = replace(joint, train=("idm", "quantizer"))
    given = {"processes": 4, "bf16": True}
    whole = replace(COUNTS, sharded=False)
    assert traffic(config, joint, whole, **given) == Traffic(4 * 1035, 0, 0)
    assert traffic(config, warmup, whole, **given) == Traffic(4 * 35, 0, 0)
    gathered = 3 * (2 * 2 * 900 + 2 * 4 * 100)
    assert traffic(config, joint, COUNTS, **given) == Traffic(4 * 35, gathered, 3 * 4 * 1000)
    assert traffic(config, warmup, COUNTS, **given) == Traffic(4 * 35, gathered, 0)
    kept = sized("blocks", accumulate=3, reshard=False)
    gathered = 3 * (4 * 900 + 2 * 4 * 100)
    found = traffic(kept, joint, COUNTS, processes=4, bf16=False)
    assert found == Traffic(4 * 35, gathered, 3 * 4 * 1000)
    groups = sized("blocks", replicas=2, accumulate=3)
    assert traffic(groups, joint, COUNTS, **given).all_reduce == 4 * 35 + 3 * 4 * 1000 // 2
    assert traffic(config, joint, COUNTS, processes=1, bf16=True) == Traffic(0, 0, 0)
    assert Traffic(100, 40, 20).sent(4, 8) == 2 * 7 / 8 * 100 + 3 / 4 * 60


def test_pieces_take_less_memory_and_more_traffic(sized):
    cluster = Cluster(H100, 4, 1)
    whole = plan_scale(sized("no"), cluster)
    pieces = plan_scale(sized("blocks"), cluster)
    assert [phase.phase for phase in whole] == ["warmup", "joint"]
    for one, other in zip(whole, pieces, strict=True):
        assert other.traffic.all_gather > 0 == one.traffic.all_gather
        assert other.communication > one.communication and other.flops == one.flops
    assert pieces[1].memory < whole[1].memory
    counts = count(sized("blocks"))
    assert 0 < counts.largest_block < counts.blocks < counts.parts["backbone"]
    share = sized("no", batch_size=2)
    assert [phase.memory for phase in whole] == [phase.total for phase in plan_memory(share)]


def test_time_by_hand(sized):
    config = sized(accumulate=2)
    (alone,) = plan_memory(
        replace(config, schedule=("joint",), training=replace(config.training, batch_size=2))
    )
    slow = Cluster(replace(H100, tflops=1e-3, link=1e9), 4, 1)  # links take no time
    joint = plan_scale(config, slow, utilisation=(0.25, 0.5))[1]
    work = 2 * alone.flops / 1e9
    assert joint.compute == pytest.approx((2 * work, 4 * work)) and joint.step == pytest.approx(
        joint.compute
    )
    assert joint.days[0] == pytest.approx(2 * work * joint.steps / 86_400)
    wait = plan_scale(config, Cluster(replace(H100, link=1e-6), 4, 1))[1]  # links take all of it
    sent = 2 * 3 / 4 * wait.traffic.all_reduce
    assert wait.communication == pytest.approx(sent / 1e3) and wait.step[0] == wait.communication
    assert Cluster(H100, 16, 2).link == 50 and Cluster(H100, 8, 1).link == 450


def test_what_cannot_be_dealt_out_is_named(sized):
    with pytest.raises(
        ConfigError,
        match=r"multiple of the 16 GPUs, got 8; the 32 clips of an update fit as --training\.batch-size 16 --training\.accumulate 2",
    ):
        plan_scale(sized(accumulate=4), Cluster(H100, 16, 2))
    with pytest.raises(ConfigError, match="too small for them"):
        plan_scale(sized(), Cluster(H100, 64, 8))
    with pytest.raises(ConfigError, match="replicas: expected a divisor of the 4 GPUs, got 3"):
        plan_scale(sized("blocks", replicas=3), Cluster(H100, 4, 1))


SIZE = ["--data.height", "28", "--data.width", "36"]
SIZE += [f"--model.{part}.depth=1" for part in ("backbone", "idm", "conditioner")]


def test_the_command(tmp_path, capsys):
    out = tmp_path / "plan.json"
    given = ["plan-scale", "nano.cola", "--gpus", "4", "--gpu", "a100", *SIZE, "--json", str(out)]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "nano.cola on 4 x a100 in 1 machine:" in shown and "all phases:" in shown
    assert "Assumed, not measured:" in shown
    told = json.loads(out.read_text())
    assert [phase["phase"] for phase in told["phases"]] == ["warmup", "joint"]
    assert told["phases"][1]["traffic"]["all_reduce"] > 0


def test_columns_stay_apart():
    wide = (0.08964, 1234.5)
    phase = PhaseScale("joint", 2**40, Traffic(2**40, 0, 0), 1.0, wide, 12345.6, wide, 10**6)
    shown = verb.table(recipe("nano.cola"), Cluster(H100, 4, 1), (phase,), (0.2, 0.4)).splitlines()[
        3
    ]
    cells = ["joint", "1024.00", "GiB", "does", "not", "fit", "1024.00", "GiB"]
    cells += ["0.0896", "to", "1.23e+03", "s", "12345.60", "s", "0.0896", "to", "1.23e+03", "s"]
    assert shown.split() == [*cells, "1.04", "to", "1.43e+04"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "tpu"], "--gpu: expected one of h200, "),
        (["--gpus", "9"], "--nodes: expected a divisor of the 9 GPUs, got 2 (machines of 8)"),
        (["--utilisation", "0.5", "0.2"], "--utilisation: expected the least first, got 0.5 0.2"),
    ],
)
def test_wrong_calls_are_named(flags, said, capsys):
    assert main(["plan-scale", "nano.cola", *SIZE, *flags]) == 2
    assert said in capsys.readouterr().err


def test_its_help_lists_recipes_and_cards(capsys):
    assert verb.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "opensora.cola" in shown and "h200" in shown
