"""The studies of the package: their arms build, at equal budgets, and differ in what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from colaworld.config import ConfigError
from colaworld.recipes import recipe
from colaworld.runs.memory import plan_memory
from colaworld.studies import STUDIES, Arm, DataSet, Study
from colaworld.studies.folder import chosen, jobs_of
from colaworld.studies.study import changed, clips_of, config_of, with_changes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_builds_and_takes_a_step(name, tmp_path) -> None:
    study = STUDIES[name]
    study.check_budget()
    for arm in study.arms:
        config = config_of(study, study.data[0], arm, seed=3)
        assert config.training.seed == 3
        small = with_changes(
            config, {"data.height": 28, "data.width": 36, "training.batch_size": 1}
        )
        phases = plan_memory(small, device="cpu")  # a traced step of each phase
        assert [phase.phase for phase in phases] == list(config.schedule)
        assert all(phase.flops > 0 for phase in phases), arm.name


def test_budgets() -> None:
    """Steps x 8 clips, counted by hand; only `prior` has arms that cost more."""
    for name in ("collapse", "mismatch", "joint_or_two_stage", "warmup"):
        study = STUDIES[name]
        asked = {clips_of(config_of(study, study.data[0], arm)) for arm in study.arms}
        assert asked == {1700 * 8}, name
    study = STUDIES["prior"]
    asked = {arm.name: clips_of(config_of(study, study.data[0], arm)) for arm in study.arms}
    assert asked["longer"] == 7400 * 8 and asked["batch_32"] == 1700 * 32
    assert {v for k, v in asked.items() if k not in ("longer", "batch_32")} == {1700 * 8}


def test_bare_is_the_papers_quantizer() -> None:
    study = STUDIES["collapse"]
    arms = {arm.name: config_of(study, study.data[0], arm) for arm in study.arms}
    for way in ("naive", "cola"):
        bare = arms[f"{way}-bare"].model
        quantizer = bare.quantizer
        assert not (quantizer.normalise or quantizer.data_start or quantizer.reseed)
        assert quantizer.unquantized_steps == 0 and not bare.idm.motion
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
