"""The studies of the package: their arms build, at equal budgets, and differ in what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.models.backbones import build_backbone
from colaworld.recipes import recipe
from colaworld.runs.memory import plan_memory
from colaworld.runs.sizes import check_frames, check_heads
from colaworld.studies import STUDIES, Arm, DataSet, Study, flops
from colaworld.studies.folder import chosen, jobs_of
from colaworld.studies.rows import read_rows
from colaworld.studies.schedule import Scheduler
from colaworld.studies.study import changed, clips_of, config_of, with_changes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_builds_and_takes_a_step(name, tmp_path) -> None:
    study = STUDIES[name]
    study.check_budget()
    height, width = (56, 72) if name == "gpu" else (28, 36)
    for arm in study.arms:
        config = config_of(study, study.data[0], arm, seed=3)
        assert config.training.seed == 3
        small = with_changes(
            config, {"data.height": height, "data.width": width, "training.batch_size": 1}
        )
        phases = plan_memory(small, device="cpu")  # a traced step of each phase
        assert [phase.phase for phase in phases] == list(config.schedule)
        assert all(phase.flops > 0 for phase in phases), arm.name


def test_budgets() -> None:
    """Steps x 8 clips, counted by hand; only `prior` has arms that cost more."""
    for name, steps in {
        "collapse": 1000,
        "mismatch": 800,
        "larger_batch": 600 * 4,
        "joint_or_two_stage": 1700,
        "warmup": 1700,
    }.items():
        study = STUDIES[name]
        asked = {clips_of(config_of(study, study.data[0], arm)) for arm in study.arms}
        assert asked == {steps * 8}, name
    study = STUDIES["prior"]
    asked = {arm.name: clips_of(config_of(study, study.data[0], arm)) for arm in study.arms}
    assert asked["longer"] == 3200 * 8 and asked["batch_32"] == 800 * 32
    assert {v for k, v in asked.items() if k not in ("longer", "batch_32")} == {800 * 8}


def test_the_gpu_study_is_ten_times_nano(tmp_path) -> None:
    """8 to 16 M parameters of generator, the same in its own run and in those that start from it."""
    jobs = {job.name: job.config for job in jobs_of(STUDIES["gpu"], tmp_path, seeds=1)}
    own = jobs["crafter/generator"]
    assert own.training.batch_size == 64
    with torch.device("meta"):
        backbone = build_backbone(own.model.backbone)
    assert 8e6 < sum(p.numel() for p in backbone.parameters()) < 16e6
    for arm in STUDIES["gpu"].arms:
        config = jobs[f"crafter/{arm.name}/seed-0"]
        assert config.model.backbone == own.model.backbone and config.training.batch_size == 64
        assert config.model.tokenizer == own.model.tokenizer
        assert config.backbone_weights == str(tmp_path / "crafter" / "generator")
        check_heads(config.model, config.parts())
        check_frames(config.model, config.parts(), height=56, width=72, frames=4)


# -- arms of equal FLOPs -------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """In place of traced steps: operations of a clip by phase."""
    told = {"warmup": 2.0, "joint": 4.0, "lam": 1.0, "world": 3.0}
    monkeypatch.setattr(flops, "_of_clip", lambda text, height, width: told)
    return told


def study_of_flops(**changes) -> Study:
    size = {"data.height": 28, "data.width": 36}
    arms = (Arm("cola", "nano.cola"), Arm("two_stage", "nano.two_stage"))
    data = DataSet("d", record=("crafter",), changes=size | changes)
    return Study("s", "?", arms=arms, data=(data,), reference="cola", budget="flops")


def test_steps_are_scaled_to_equal_flops(counted, tmp_path) -> None:
    study = study_of_flops()
    cola, two = 400 * 2 + 1300 * 4, 400 * 1 + 1300 * 3  # of a clip of each step
    assert flops.scales(study, study.data[0]) == {"cola": 1.0, "two_stage": cola / two}
    jobs = {job.name: job.config for job in jobs_of(study, tmp_path, seeds=1)}
    phases = jobs["d/two_stage/seed-0"].phases
    steps = {name: phases[name].steps for name in ("lam", "world")}
    assert steps == {"lam": round(400 * cola / two), "world": round(1300 * cola / two)}
    assert sum(steps[name] * counted[name] for name in steps) == pytest.approx(cola, rel=1e-3)
    assert jobs["d/cola/seed-0"].phases == recipe("nano.cola").phases
    # Longer phases keep their ramps, shorter ones shrink them.
    assert phases["world"].cooldown_steps == 300
    other = {
        job.name: job.config
        for job in jobs_of(replace(study, reference="two_stage"), tmp_path, seeds=1)
    }
    short = other["d/cola/seed-0"].phases["joint"]
    assert short.steps == round(1300 * two / cola) and short.cooldown_steps < 300
    # A look is as long for all; a clip more in each step is not.
    look = [j.config for j in jobs_of(study, tmp_path, seeds=1, max_steps=2) if j.config]
    assert {config.training.max_steps for config in look} == {2}
    twice = replace(
        study, arms=(*study.arms, Arm("twice", "nano.cola", {"training.batch_size": 16}))
    )
    assert flops.scales(twice, study.data[0])["twice"] == 0.5


def test_flops_need_the_size_of_frames_and_a_model_to_trace(monkeypatch, tmp_path) -> None:
    study = study_of_flops()
    unsized = replace(study, data=(replace(study.data[0], changes={}),))
    with pytest.raises(
        ConfigError, match=r"data 'd': budget='flops' .* data\.height and data\.width"
    ):
        jobs_of(unsized, tmp_path, seeds=1)
    monkeypatch.setattr(flops, "_of_clip", lambda *_: None)
    with pytest.raises(ConfigError, match=r"arm 'cola': budget='flops' .* cannot be traced"):
        jobs_of(study, tmp_path, seeds=1)


@pytest.mark.slow
def test_equal_flops_as_traced() -> None:
    study = STUDIES["equal_flops"]
    for data in study.data[:1]:
        by = flops.scales(study, data)
        total = []
        for arm in study.arms:
            config = config_of(study, data, arm, scale=by[arm.name])
            steps = {phase.name: phase.steps for phase in config.scheduled()}
            height, width = config.data.height, config.data.width
            total.append(flops.flops_of(config, steps, height=height, width=width))
        assert total == pytest.approx([total[0]] * len(total), rel=1e-3)
        assert by["two_stage"] == 1 and by["naive_joint"] < by["cola"] < by["frozen_world"]


@pytest.mark.parametrize("name", ["quick", "collapse", "gpu"])
def test_a_look_is_not_refused_for_its_unequal_arms(name, tmp_path) -> None:
    """Capped, an arm of two phases trains twice as long as one of one."""
    for job in jobs_of(STUDIES[name], tmp_path, seeds=1, max_steps=2):
        assert job.config is None or job.config.training.max_steps == 2


def test_generators_that_rows_name_are_those_of_today(tmp_path) -> None:
    """Another hash would refuse every generator that is there, which takes half an hour to train."""
    rows = read_rows(ROOT / "benchmarks/results/study_planning.json")
    known = {(row["data"], how) for row in rows if (how := row["made"].get("generator"))}
    assert {data for data, _ in known} == {"scene", "robodesk"}
    jobs = jobs_of(STUDIES["planning"], tmp_path, seeds=1)
    made = {job.of[1].name: job.made.get("generator") for job in jobs if job.of}
    assert all(made[data] == how for data, how in known)


def test_bare_is_the_papers_quantizer() -> None:
    study = STUDIES["collapse"]
    arms = {arm.name: config_of(study, study.data[0], arm) for arm in study.arms}
    for way in ("naive", "cola"):
        bare = arms[f"{way}-bare"].model
        quantizer = bare.quantizer
        assert not (quantizer.normalise or quantizer.data_start or quantizer.reseed)
        assert quantizer.unquantized_steps == 0
        assert not (bare.idm.motion or bare.idm.standardise_frames)
        assert arms[f"{way}-standardise"].model.quantizer.normalise
        assert not arms[f"{way}-standardise"].model.quantizer.reseed
        assert arms[f"{way}-continuous"].model.quantizer.unquantized_steps == 250
        assert [arms[f"{way}-{kind}"].model.quantizer.kind for kind in ("ema", "fsq", "none")] == [
            *("ema", "fsq", "none")
        ]
    assert arms["naive-bare"].schedule == ("joint",)
    assert arms["cola-bare"].phases["warmup"].gate.missed == "go_on"
    assert (
        arms["cola-bare"].phases["warmup"].gate.entropy
        == recipe("nano.cola").phases["warmup"].gate.entropy
    )


def test_remedies_follow_the_same_warmup() -> None:
    """So that arms which change what comes after it have the same steps in it, and `extend` goes on from `stop`."""
    study = STUDIES["remedies"]
    arms = {arm.name: config_of(study, study.data[0], arm) for arm in study.arms}
    stop = arms["stop"].phases["warmup"]
    assert stop.gate.missed == "stop" and stop.steps == 200
    for name, missed in (("reseed", "reseed"), ("go_on", "go_on")):
        same = replace(stop, gate=replace(stop.gate, missed=missed))
        assert arms[name].phases["warmup"] == same and arms[name].model == arms["stop"].model
        assert arms[name].phases["joint"] == arms["stop"].phases["joint"]
    assert arms["extend"].phases["warmup"] == replace(stop, steps=400)
    assert arms["alarm"].phases["joint"].alarm.action == "rollback"
    assert arms["moved"].phases["warmup"].gate.control_floor > 0


def test_ramps_shrink_with_a_phase_unless_they_are_named() -> None:
    short = changed("nano.cola", {"phases.joint.steps": 130})
    assert short.phases["joint"].cooldown_steps == 30 and short.phases["joint"].lr_warmup_steps == 5
    named = changed("nano.cola", {"phases.joint.steps": 130, "phases.joint.cooldown_steps": 100})
    assert named.phases["joint"].cooldown_steps == 100
    # A look of two steps cuts what is named as well: codes would not begin before step 251.
    named = {"model.quantizer.unquantized_steps": 250}
    look = changed("nano.cola", named, max_steps=2)
    assert look.model.quantizer.unquantized_steps == 1 and look.training.max_steps == 2
    assert changed("nano.cola", named).model.quantizer.unquantized_steps == 250


def test_a_change_of_what_is_off_is_refused() -> None:
    config = recipe("nano.frozen_world")  # its warm-up has no gate
    with pytest.raises(ConfigError, match=r"gate\.missed: there is no phases\.warmup\.gate in"):
        with_changes(config, {"phases.warmup.gate.missed": "go_on"})
    with pytest.raises(ConfigError, match=r"unknown key 'model\.idm\.widht'; did you mean 'width'"):
        with_changes(config, {"model.idm.widht": 3})


def test_wrong_studies_are_refused() -> None:
    arm, data = Arm("a", "nano.cola"), DataSet("d", path=Path("."))
    with pytest.raises(ConfigError, match="reference: expected one of its arms, got 'b'"):
        Study("s", "?", arms=(arm,), data=(data,), reference="b")
    with pytest.raises(ConfigError, match="arms: expected one or more of different names"):
        Study("s", "?", arms=(arm, arm), data=(data,), reference="a")
    with pytest.raises(ConfigError, match=r"arm.name: expected a name of small letters"):
        Arm("../a", "nano.cola")
    with pytest.raises(ConfigError, match="either record or path"):
        DataSet("d")


def test_generators_of_a_world_come_first_and_random_ones_stay_random(tmp_path) -> None:
    jobs = {job.name: job for job in jobs_of(STUDIES["mismatch"], tmp_path, seeds=1)}
    own = str(tmp_path / "pusht" / "generator")
    random = jobs["pusht/random_idm-random_generator/seed-0"]
    assert random.config.backbone_weights is None
    assert jobs["pusht/cola/seed-0"].config.backbone_weights == own
    assert jobs["crafter/cola/seed-0"].config.backbone_weights == "nano"
    assert random.needs == ("pusht/data", "pusht/generator-data", "pusht/generator")
    assert jobs["pusht/generator"].needs == ("pusht/generator-data",)
    assert jobs["pusht/generator"].config.data.path == tmp_path / "pusht" / "generator-data"
    some = chosen(list(jobs.values()), arms=("cola",), data=("crafter",))
    assert [job.name for job in some] == ["crafter/data", "crafter/cola/seed-0"]


def test_every_study_has_a_row_in_the_guide() -> None:
    guide = (ROOT / "docs" / "studies.md").read_text()
    for name, study in STUDIES.items():
        (line,) = [line for line in guide.splitlines() if line.startswith(f"| `{name}` |")]
        assert line.endswith(f"| {len(study.arms)} |"), line


@pytest.mark.slow
def test_the_gpu_study_runs_a_step_of_each_phase(tmp_path) -> None:
    """As it is but for the number of episodes, and what a step and an evaluation take."""
    pytest.importorskip("crafter")
    study = STUDIES["gpu"]
    (data,) = study.data
    few = ("--episodes", "12", "--steps", "20", "--workers", "1")
    data = replace(
        data,
        record=(*data.record, *few),
        pretrain=(*data.pretrain, *few),
        pretrain_changes={**data.pretrain_changes, "training.batch_size": 2},
    )
    small = {"training.batch_size": 2, "objective.start_clips": 8, "training.control_clips": 4}
    small |= {"evaluation.clips": 2, "evaluation.horizon": 2, "evaluation.probe_clips": 8}
    small |= {"sampler.steps": 1, "evaluation.bootstrap_samples": 20}
    study = replace(study, data=(data,), changes={**study.changes, **small})
    jobs = chosen(jobs_of(study, tmp_path, seeds=1, max_steps=1), arms=("cola",), data=())
    said: list[str] = []
    outcome = Scheduler(jobs, jobs=1, device="cpu", say=said.append).run()
    assert not outcome.failed and not outcome.left, said
    row = jobs[-1].state()["row"]
    assert row["steps_by_phase"] == {"warmup": 1, "joint": 1} and row["flops"] > 0
