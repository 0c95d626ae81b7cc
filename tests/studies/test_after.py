"""What follows the runs of a study, evaluations elsewhere, adaptations, plans: from the commands to the tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.config import ConfigError
from colaworld.files import FileError
from colaworld.studies.after import adaptations, bounds_of, elsewhere, plans
from colaworld.studies.compare import difference
from colaworld.studies.folder import jobs_of
from colaworld.studies.nano import JOINT_OR_TWO_STAGE
from colaworld.studies.study import Adaptation, Planning
from colaworld.studies.tables import adaptations_table, arms_table, elsewhere_table, plans_table

GOLDEN = Path(__file__).parents[1] / "evaluation" / "golden.json"


def write(out: Path, psnr: list[float]) -> Path:
    """An adaptation.json of clips with these PSNR after fine-tuning, each 1 dB above the adapter alone."""

    def way(values: list[float]) -> dict:
        mean = sum(values) / len(values)
        return {"psnr": {"mean": mean, "low": mean, "high": mean}, "per_clip": {"psnr": values}}

    before = [value - 1 for value in psnr]
    out.mkdir(parents=True)
    found = {
        "before": {"real": way(before), "inferred": way(psnr)},
        "after": {"real": way(psnr), "inferred": way(psnr)},
        "gain": {"psnr": {"mean": 1.0, "low": 1.0, "high": 1.0}},
        "codebook": {"adapted": {"utilisation": [1.0, 0.5], "entropy": [0.9, 0.4]}},
        "counts": {"episode": [0, 0, 1]},
    }
    (out / "adaptation.json").write_text(json.dumps(found))
    return out


def row(folder: Path, arm: str, seed: int, psnr: list[float]) -> dict:
    base = folder / arm / f"seed-{seed}"
    (one,) = adaptations(Adaptation(labels=(100,)), base, folder, seed=seed)
    write(one.out, psnr)
    found = one.read()
    more = {"data": "d", "arm": arm, "seed": seed, "reference": "two_stage", "entropy": []}
    return more | {"numbers": found["numbers"], "clips": {}, "after": {one.key: found["clips"]}}


def test_each_run_is_adapted_with_each_number_of_labels(tmp_path):
    job = next(j for j in jobs_of(JOINT_OR_TWO_STAGE, tmp_path, seeds=1) if j.of)
    looks = ["colour", "texture"]
    sets = [f"crafter/elsewhere-{look}" for look in looks]
    assert job.needs == ("crafter/data", "crafter/labelled", *sets)
    (job.base / "weights").mkdir(parents=True)
    (job.base / "weights" / "model.safetensors").touch()
    (job.base / "evaluation.json").touch()
    for look, path in zip(looks, sets, strict=True):
        out = job.base.with_name(f"seed-0-elsewhere-{look}")
        call = ["evaluate", str(job.base), "--data", str(tmp_path / path), "--out", str(out)]
        assert job.command(device="cpu") == [*call, "--device", "cpu"]
        out.mkdir()
        (out / "evaluation.json").touch()
    asked = []
    while (command := job.command(device="cpu")) is not None:
        assert command[:4] == ["adapt", str(job.base), "--data", str(tmp_path / "crafter/labelled")]
        assert command[command.index("--steps") + 1] == "300"
        assert "--resume" not in command
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        (out / "config.yaml").touch()
        again = job.command(device="cpu")
        assert again == [*command, "--resume"]
        (out / "adaptation.json").touch()
        asked.append(command[command.index("--labels") + 1])
    assert asked == ["100", "1000", "10000"]
    job.note(stopped="the codebook collapsed")
    assert job.after == []


def test_the_table_pairs_arms_clip_by_clip(tmp_path):
    values = {"cola": [21.0, 23.0, 25.0], "two_stage": [20.0, 22.0, 24.0]}
    rows = {
        arm: [row(tmp_path, arm, seed, [v + seed for v in of]) for seed in range(2)]
        for arm, of in values.items()
    }
    header, ours, theirs = adaptations_table(rows)
    assert ours[:3] == ["100", "cola", "2"] and ours[3].startswith("22.50 [2")
    assert ours[header.index("fine-tuning gained, dB")] == "+1.00 [+1.00, +1.00]"
    assert ours[header.index("entropy")] == "0.40 [0.40, 0.40]"
    assert ours[-1] == "+1.00 [+1.00, +1.00] (2 of 2)" and theirs[-1] == "-"
    assert not [name for name in arms_table(rows)[0] if "adapted" in name]
    found = difference(rows["cola"], rows["two_stage"], "adapted.100.psnr")
    assert found is not None and found.over == "seeds and episodes"


def test_scores_that_are_not_there_are_told(tmp_path):
    (one,) = adaptations(Adaptation(labels=(100,)), tmp_path / "run", tmp_path, seed=0)
    with pytest.raises(FileError, match=r"adaptation\.json.*colaworld adapt"):
        one.read()
    out = write(one.out, [20.0, 21.0, 22.0])
    found = json.loads((out / "adaptation.json").read_text())
    del found["after"]
    (out / "adaptation.json").write_text(json.dumps(found))
    with pytest.raises(FileError, match="expected what colaworld adapt writes: KeyError"):
        one.read()


def test_each_run_plans_in_codes_and_after_its_adaptation_in_real_actions(tmp_path):
    how = Planning("crafter-reach", ("--episodes", "2"), codes=("--codes", "seen"))
    crafter = replace(JOINT_OR_TWO_STAGE.data[0], plan=how)
    study = replace(JOINT_OR_TWO_STAGE, data=(crafter,), plan=True)
    jobs = jobs_of(study, tmp_path, seeds=1)
    (bounds,) = (job for job in jobs if job.name == "crafter/bounds")
    command = bounds.command(device="cpu")
    assert command[:2] == ["plan", "crafter-reach"] and "world" not in command
    job = next(j for j in jobs if j.of)
    assert "crafter/bounds" in job.needs and job.bounds == bounds.base / "plan.json"
    latent, real = job.after[-2:]
    assert latent.call[2:6] == ("--run", str(job.base), "--data", str(job.labelled))
    assert latent.call[6:8] == ("--codes", "seen") and "--codes" not in (*real.call, *command)
    assert real.call[2:4] == ("--run", f"{job.base}-labels-10000")
    for one in (latent, real):
        assert one.call[-4:] == ("--rows", "world", "--episodes", "2")


def test_the_table_of_plans_has_what_they_are_held_against(tmp_path):
    def planned(arm: str, seed: int, won: list[bool]) -> dict:
        (one,) = plans(Planning("scene"), tmp_path / arm / f"seed-{seed}", tmp_path, adapted=None)
        one.out.mkdir(parents=True)
        success = {"mean": sum(won) / len(won), "low": 0.0, "high": 1.0}
        world = {"success": success, "seconds_per_decision": 2.0}
        world["episodes"] = [{"success": w} for w in won]
        protocol = {"env": "scene", "episodes": len(won), "device": f"machine {seed}"}
        found = {"rows": {"world": world, "oracle": world}, "protocol": protocol}
        one.file.write_text(json.dumps(found))
        read = one.read()
        more = {"data": "d", "arm": arm, "seed": seed, "reference": "two_stage", "clips": {}}
        more |= {"numbers": read["numbers"], "after": {one.key: read["clips"]}}
        return more | {"bounds": bounds_of(one.file)}

    won = {"cola": [True, True, False], "two_stage": [True, False, False]}
    rows = {arm: [planned(arm, seed, of) for seed in range(2)] for arm, of in won.items()}
    _, ours, theirs, oracle = plans_table(rows)
    assert ours[:3] == ["codes", "cola", "2"] and ours[3].startswith("0.67 [")
    assert ours[4].startswith("+0.33 [+0.00") and theirs[4] == "-"
    assert oracle == ["in the true simulator", "", "", "0.67 [0.00, 1.00]", "-", "-"]
    found = difference(rows["cola"], rows["two_stage"], "planned.latent.success")
    assert found is not None and found.over == "seeds and episodes"


def test_plans_of_other_episodes_than_their_bounds_are_refused(tmp_path):
    """Both hashes and both files are named; a row is not made of them."""

    def plan(name: str, goals: str) -> Path:
        success = {"mean": 0.5, "low": 0.0, "high": 1.0}
        path = tmp_path / name / "plan.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"rows": {"copy": {"success": success}}, "protocol": goals}))
        return path

    bounds, same, other = (
        plan(name, {"goals": goals} if goals else {})
        for name, goals in (("bounds", "aa11"), ("same", "aa11"), ("other", "bb22"))
    )
    assert list(bounds_of(bounds, [same])) == ["copy"]
    with pytest.raises(FileError, match=r"other/plan\.json: .*bounds/plan\.json, aa11, got bb22"):
        bounds_of(bounds, [same, other])
    with pytest.raises(FileError, match=r"old/plan\.json: .* got None"):
        bounds_of(bounds, [plan("old", {})])


def test_a_run_whose_plans_are_of_other_episodes_makes_no_row(tmp_path):
    crafter = replace(JOINT_OR_TWO_STAGE.data[0], plan=Planning("crafter"))
    study = replace(JOINT_OR_TWO_STAGE, data=(crafter,), adapt=None, plan=True, elsewhere=False)
    job = next(job for job in jobs_of(study, tmp_path, seeds=1) if job.of)
    (latent,) = job.after
    world = {"success": {"mean": 0.0, "low": 0.0, "high": 1.0}, "seconds_per_decision": 1.0}
    for path, goals in ((latent.file, "aa11"), (job.bounds, "bb22")):
        path.parent.mkdir(parents=True)
        rows = {"world": world | {"episodes": []}}
        path.write_text(json.dumps({"rows": rows, "protocol": {"goals": goals}}))
    with pytest.raises(FileError, match=r"plan-latent/plan\.json: .*, bb22, got aa11"):
        job.finish()
    assert job.row is None


@pytest.mark.parametrize("labels", [(), (0,), (100, 100)])
def test_labels_that_make_no_sense_are_refused(labels):
    with pytest.raises(ConfigError, match=r"adaptation\.labels.*(different numbers|>= 1)"):
        replace(JOINT_OR_TWO_STAGE, adapt=Adaptation(labels=labels))


def test_what_runs_do_elsewhere_is_compared_clip_by_clip(tmp_path):
    """Where a run was stopped, or a study does not ask, nothing is measured elsewhere."""
    found = json.loads(GOLDEN.read_text())["moves"]["result"]
    rows = []
    for arm, gain in (("ours", 2.0), ("two_stage", 0.0)):
        for seed in (0, 1):
            (one,) = elsewhere({"colour": tmp_path}, tmp_path / arm / f"seed-{seed}")
            found["rollout"]["psnr"] = {"mean": 20 + gain, "low": 19.0, "high": 23.0}
            clips = {"rolled": "same", "probed": "same", "episode": [0, 1]}
            values = {"psnr": [19 + gain, 21 + gain], "delta_psnr": [1.0, 2.0]}
            one.out.mkdir(parents=True)
            one.file.write_text(json.dumps(found | {"clips": {**clips, "values": values}}))
            read = one.read()
            more = {"data": "d", "arm": arm, "seed": seed, "reference": "two_stage", "entropy": []}
            more |= {"numbers": read["numbers"], "after": {one.key: read["clips"]}}
            rows.append(more | {"clips": {}, "collapsed_at": None})
    arms = {"ours": rows[:2], "two_stage": rows[2:]}
    head, ours, theirs = elsewhere_table(arms)
    assert head[:3] == ["elsewhere", "arm", "seeds"] and head[7] == "PSNR, dB, minus two_stage"
    assert ours[:3] == ["colour", "ours", "2"] and ours[7] == "+2.00 [+2.00, +2.00] (2 of 2)"
    assert theirs[4].startswith("20.00 [19.00, 21.00]") and theirs[6:] == ["-"] * 3
    assert arms_table(arms)[0] == [
        "arm",
        "seeds",
        "collapsed",
    ]  # elsewhere is not among its numbers
    asks_not = replace(JOINT_OR_TWO_STAGE, elsewhere=False)
    jobs = jobs_of(asks_not, tmp_path, seeds=1)
    assert not [job.name for job in jobs if "elsewhere" in job.name]
    assert not [one.key for one in jobs[-1].after if "elsewhere" in one.key]
