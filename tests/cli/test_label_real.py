"""`colaworld label --real`: estimated real actions beside the latent ones, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from colaworld.cli.main import main
from colaworld.contracts import ActionSpec
from colaworld.data.clips import ClipSet
from colaworld.data.labels import CODE, CONFIDENCE, ESTIMATE, PROVENANCE, VALID, VECTOR, read_labels
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_columns import write_columns
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.models.latent_action.identity import action_head_hash, latent_action_hash
from colaworld.runs import label as runs_label
from colaworld.runs.estimates import Estimator, head_error_at
from colaworld.runs.label import Together, label_set
from colaworld.runs.labeller import Labeller
from colaworld.runs.load import load_world

SHORT = ["--steps", 1, "--adapter-steps", 20, "--evaluation.clips", 4, "--evaluation.horizon", 2]
SHORT += ["--evaluation.bootstrap-samples", 20, "--sampler.steps", 1]
FEW = ("--episodes", "3")
MOVES = ("noop", "left", "right", "up", "down")
ARM = ActionSpec("action", "continuous", 2, ("x", "y"), ("m", "rad"), "relative", "base")


def adapt(trained: Path, data: Path, out: Path, *more: str) -> Path:
    call = ["adapt", trained, "--data", data, "--out", out, *SHORT, *more]
    assert main([str(a) for a in call]) == 0
    return out


@pytest.fixture(scope="module")
def adapted(trained, scene, tmp_path_factory) -> Path:
    """Of the scene's five moves. Do not write into it."""
    return adapt(trained, scene, tmp_path_factory.mktemp("adapted") / "run")


@pytest.fixture(scope="module")
def arm(scene, tmp_path_factory) -> Path:
    """The films of the scene under actions of two numbers."""
    path, films = tmp_path_factory.mktemp("arm") / "set", open_source(scene)
    rng = np.random.default_rng(0)
    with LeRobotWriter(path, fps=10, height=32, width=32, action=ARM) as writer:
        for episode in films.episodes[:20]:
            actions = rng.normal((3, -100), (2, 10), (episode.frames, 2)).astype(np.float32)
            writer.add(films.read(episode.index, range(episode.frames)), actions)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def adapted_arm(trained, arm, tmp_path_factory) -> Path:
    """Of every second frame: a step holds two actions of two numbers."""
    out = tmp_path_factory.mktemp("adapted") / "arm"
    clips = ["--data.stride", "2", "--data.frames-per-clip", "4"]
    return adapt(trained, arm, out, *clips)


def rows(root: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(root / "data").sort_by("index")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_classes_are_those_of_the_inferred_codes(adapted, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    call = ("label", adapted, "--data", scene, "--episodes", 8)
    said = colaworld(*call, "--out", out, "--real")
    assert said.status == 0 and "estimates, not recorded actions; accuracy " in said.out
    world, _ = load_world(adapted)
    found, source = rows(out), open_source(scene)
    for e in (0, 7):  # by the world itself, of whole episodes of 12 frames
        frames = torch.from_numpy(source.read(e, range(12))).permute(0, 3, 1, 2)
        codes = world.infer_actions(frames[None]).codes
        wanted = world.decode_actions(codes)[0].tolist()
        assert found[ESTIMATE][12 * e : 12 * e + 12].tolist() == [*wanted, wanted[-1]]
        with torch.no_grad():
            logits = world.model.action_head(codes)[0].double()
        most = logits.exp().amax(1) / logits.exp().sum(1)
        np.testing.assert_allclose(found[CONFIDENCE][12 * e : 12 * e + 11], most, rtol=1e-5)
    assert len(set(found[ESTIMATE].tolist())) > 1
    np.testing.assert_array_equal(found["action"], rows(scene)["action"])  # recorded ones stay
    made = open_source(out, action_column=ESTIMATE)
    assert made.action_spec == ActionSpec(ESTIMATE, "discrete", 5, MOVES)
    assert made.actions(7).tolist() == found[ESTIMATE][84:96].tolist()
    features = json.loads((out / "meta/info.json").read_text())["features"]
    assert features[ESTIMATE]["dtype"] == "int64" and features[CONFIDENCE]["dtype"] == "float32"
    assert features[ESTIMATE]["description"].startswith("Estimated from video, not recorded")
    assert "accuracy " in features[ESTIMATE]["description"]
    plain = tmp_path / "plain"  # without --real: the same latent actions and nothing of these
    assert colaworld(*call, "--out", plain).status == 0
    without = rows(plain)
    assert not {ESTIMATE, CONFIDENCE} & without.keys()
    assert "real_actions" not in read_labels(plain)
    for name in (CODE, VECTOR, VALID):
        np.testing.assert_array_equal(without[name], found[name])


def test_the_provenance_says_what_they_are_and_how_wrong(
    adapted, scene, tmp_path, colaworld
) -> None:
    out, exported, again = tmp_path / "out", tmp_path / "exported", tmp_path / "again"
    call = ("--data", scene, "--real", *FEW)
    assert colaworld("label", adapted, *call, "--out", out).status == 0
    said, world = read_labels(out), load_world(adapted)[0]
    real = said["real_actions"]
    assert said["columns"] == [CODE, VECTOR, VALID, ESTIMATE, CONFIDENCE]
    assert real["contract"]["hash"] == world.actions.hash
    assert real["contract"]["names"] == list(MOVES) and real["contract"]["rate"] == 10
    assert real["head"]["hash"] == action_head_hash(world.model)
    assert said["key"]["real"] == {"contract": world.actions.hash, "head": real["head"]["hash"]}
    stored = json.loads((adapted / "adaptation.json").read_text())
    counts = {"clips": 4, "episodes": stored["counts"]["episodes"]}
    assert real["heldout_error"] == stored["head"] | counts
    assert len(stored["head"]["recall"]) == 5
    # An export carries them, and labels the same.
    assert colaworld("export", adapted, "--out", exported).status == 0
    assert head_error_at(exported) == real["heldout_error"]
    card = (exported / "README.md").read_text()
    assert "| real actions estimated of latent ones | accuracy " in card
    size = ("--data.height", 32, "--data.width", 32)
    assert colaworld("label", exported, *call, "--out", again, *size).status == 0
    assert content(again) == content(out)


def test_numbers_come_in_the_units_of_the_robot(
    adapted_arm, arm, film, tmp_path, colaworld
) -> None:
    """Also beside films without actions, of which nothing is known but their frames."""
    out = tmp_path / "out"
    said = colaworld("label", adapted_arm, "--data", arm, "--out", out, "--real")
    assert (
        said.status == 0 and "mean error (standard deviation) on 4 held-out clips x+0 " in said.out
    )
    world, _ = load_world(adapted_arm)
    found, source = rows(out), open_source(arm)
    frames = torch.from_numpy(source.read(3, range(12))).permute(0, 3, 1, 2)
    assert found[ESTIMATE].shape == (240, 4) and CONFIDENCE not in found
    for first in (0, 1):  # row t leads to frame t + 2, and holds the actions t and t + 1
        codes = world.infer_actions(frames[None, first::2]).codes
        wanted = world.decode_actions(codes)[0].numpy()
        np.testing.assert_allclose(found[ESTIMATE][36 + first : 46 : 2], wanted, rtol=1e-5)
    for row in (46, 47):
        np.testing.assert_array_equal(found[ESTIMATE][row], found[ESTIMATE][45])
    assert found[VALID][36:48].tolist() == [True] * 10 + [False] * 2
    means = found[ESTIMATE].mean(0)  # of the actions, not of standardised numbers
    assert (np.abs(means[[0, 2]] - 3) < 3).all() and (np.abs(means[[1, 3]] + 100) < 15).all()
    spec = ActionSpec(ESTIMATE, "continuous", 4, ("x+0", "y+0", "x+1", "y+1"), ("m", "rad") * 2)
    made = open_source(out, action_column=ESTIMATE)
    assert made.action_spec == type(spec)(**{**vars(spec), "mode": "relative", "frame": "base"})
    np.testing.assert_array_equal(made.actions(3), found[ESTIMATE][36:48].astype(np.float32))
    error = read_labels(out)["real_actions"]["heldout_error"]
    assert len(error["mae"]) == 4 and error["clips"] == 4
    film(tmp_path / "films/a.mp4", frames=8)
    more = tmp_path / "more"
    call = ("label", adapted_arm, "--data", tmp_path / "films", "--out", more, "--real")
    assert colaworld(*call).status == 0
    assert rows(more)[ESTIMATE].shape == (8, 4) and "action" not in rows(more)
    call = (*call[:4], "--out", tmp_path / "rate", "--real", "--data.stride", 1)
    said = colaworld(*call)
    assert (
        said.status == 2
        and "over 1/10 s" in said.err
        and "--data.stride 1 --data.fps 5" in said.err
    )
    assert colaworld(*call, "--data.fps", 5).status == 0
    np.testing.assert_array_equal(rows(tmp_path / "rate")[ESTIMATE], rows(more)[ESTIMATE])


def test_a_set_of_another_robot_is_told_with_both_sides(
    adapted_arm, adapted, arm, scene, film, tmp_path, colaworld, caplog
) -> None:
    def label(run: Path, data: Path, name: str, *more: object) -> tuple[list[str], dict]:
        caplog.clear()
        said = colaworld(
            "label", run, "--data", data, "--out", tmp_path / name, "--real", *FEW, *more
        )
        assert said.status == 0, said.err
        warned = [r.getMessage() for r in caplog.records if "recorded actions" in r.getMessage()]
        return warned, read_labels(tmp_path / name)["real_actions"]["recorded"]

    warned, said = label(adapted_arm, arm, "own")
    assert warned == [] and said["differences"] == []
    model, data = load_world(adapted_arm)[0].actions.hash, load_world(adapted)[0].actions.hash
    assert said["contract"] == model
    warned, said = label(adapted, scene, "scene")
    assert warned == [] and said == {"contract": data, "differences": []}
    # Numbers for degrees, in another order: the films of the arm itself.
    spec = replace(ARM, names=("y", "x"), units=("deg", "m"))
    other, films = tmp_path / "other", open_source(arm)
    with LeRobotWriter(other, fps=10, height=32, width=32, action=spec) as writer:
        for episode in films.episodes[:3]:
            writer.add(
                films.read(episode.index, range(12)), films.actions(episode.index)[:12, ::-1]
            )
        writer.finish()
    (warned,), said = label(adapted_arm, other, "labelled")
    assert warned.startswith(f"{other}: its recorded actions (column 'action', contract ")
    assert (
        f"those of {adapted_arm} (column 'action', contract {model}), and estimated_action"
        in warned
    )
    wrong = "names of channels: model x+0, y+0, x+1, y+1; data y+0, x+0, y+1, x+1 (another order: "
    assert wrong in warned
    (one,) = said["differences"]
    assert one["what"] == "names of channels" and one["kind"] == "wrong"
    assert one["model"] == "x+0, y+0, x+1, y+1" and one["data"] == "y+0, x+0, y+1, x+1"
    # Classes for numbers, which no step of two frames can hold.
    (warned,), said = label(adapted_arm, scene, "classes")
    assert (
        "recorded actions cannot be compared with those of" in warned and said["contract"] is None
    )
    film(tmp_path / "films/a.mp4", frames=8)
    assert label(adapted_arm, tmp_path / "films", "film") == ([], None)


def test_what_cannot_be_is_refused(adapted, trained, scene, film, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    call = ("--data", scene, "--out", out, "--real")
    exported = tmp_path / "exported"
    assert colaworld("export", trained, "--out", exported).status == 0
    for world in (trained, exported):
        said = colaworld("label", world, *call)
        assert said.status == 2 and "has no head" in said.plain and "colaworld adapt" in said.plain
    said = colaworld("label", adapted, *call, "--data.stride", 2)
    assert said.status == 2 and "lead over 1/5 s" in said.err and "fill 1/10 s" in said.err
    with pytest.raises(ValueError, match="it has no head"):
        Estimator(load_world(trained)[0], None)
    # A column of that name that somebody recorded.
    recorded = tmp_path / "recorded"
    write_columns(scene, recorded, {ESTIMATE: np.arange(480) % 3})
    before = content(recorded)
    for more in (("--in-place", "--overwrite"), ("--out", out)):
        said = colaworld("label", adapted, "--data", recorded, *more, "--real", *FEW)
        assert said.status == 2 and f"has a column '{ESTIMATE}'" in said.err
    said = colaworld("label", trained, "--data", recorded, "--in-place", "--overwrite", *FEW)
    assert said.status == 2 and content(recorded) == before
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_an_error_of_other_weights_is_not_told(adapted, scene, tmp_path, colaworld, caplog) -> None:
    run, out = Path(shutil.copytree(adapted, tmp_path / "run")), tmp_path / "out"
    file = run / "adaptation.json"
    said = json.loads(file.read_text())
    said["run"]["weights_sha256"] = {"model.safetensors": "0" * 64}
    file.write_text(json.dumps(said))
    assert head_error_at(run) is None and "measured of other weights" in caplog.text
    file.unlink()
    assert colaworld("label", run, "--data", scene, "--out", out, "--real", *FEW).status == 0
    assert "was not measured" in caplog.text
    features = json.loads((out / "meta/info.json").read_text())["features"]
    assert "error not measured" in features[ESTIMATE]["description"]
    assert read_labels(out)["real_actions"]["heldout_error"] is None


def test_it_goes_on_to_the_same_bytes(adapted, scene, tmp_path, colaworld, monkeypatch) -> None:
    out, whole, label = tmp_path / "out", tmp_path / "whole", runs_label.label_episode
    call = ("label", adapted, "--data", scene, "--real", *FEW)
    done = []

    def stopped(clips, episode, *given, **more):
        done.append(episode)
        if done == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return label(clips, episode, *given, **more)

    monkeypatch.setattr(runs_label, "label_episode", stopped)
    assert colaworld(*call, "--out", out).status == 130
    said = colaworld("label", adapted, "--data", scene, *FEW, "--out", out)
    assert said.status == 2 and "real.head: " in said.err  # begun with, now without
    assert colaworld(*call, "--out", out).status == 0 and done == [0, 1, 1, 2]
    assert colaworld(*call, "--out", whole).status == 0
    assert content(out) == content(whole)
    # In place, where latent actions are already: refused, and replaced where that is asked.
    copy = Path(shutil.copytree(scene, tmp_path / "copy"))
    plain = ("label", adapted, "--data", copy, "--in-place", *FEW)
    assert colaworld(*plain).status == 0
    said = colaworld(*plain, "--real")
    assert said.status == 2 and "real.contract: None then" in said.err
    assert colaworld(*plain, "--real", "--overwrite").status == 0 and content(copy) == content(
        whole
    )
    assert colaworld(*plain, "--overwrite").status == 0  # and away again
    assert ESTIMATE not in rows(copy) and ESTIMATE not in read_labels(copy)["columns"]


def test_two_processes_write_the_same_bytes(adapted, scene, tmp_path, colaworld) -> None:
    """Threads in their place: what they tell each other passes through `gather` either way."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert colaworld("label", adapted, "--data", scene, "--real", *FEW, "--out", one).status == 0
    said, barrier = [None, None], threading.Barrier(2, timeout=60)

    def work(rank: int):
        def gather(value):
            said[rank] = value
            barrier.wait()
            found = list(said)
            barrier.wait()
            return found

        world, config = load_world(adapted)
        return label_set(
            Labeller.of_world(replace(world, frame_size=(32, 32)), recipe="adapt"),
            ClipSet(replace(config.data, height=32, width=32, split="all", frames_per_clip=1)),
            two,
            estimator=Estimator(world, head_error_at(adapted)),
            episodes=3,
            together=Together(rank, 2, gather),
        )

    with ThreadPoolExecutor(2) as pool:
        assert [found.done for found in pool.map(work, range(2))] == [3, 3]
    assert content(one) == content(two)


def test_inspect_tells_whose_latent_actions_there_are(adapted, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    assert colaworld("label", adapted, "--data", scene, "--real", *FEW, "--out", out).status == 0
    said = colaworld("data", "inspect", out, "--episodes", 1)
    model = latent_action_hash(load_world(adapted)[0].model)[:16]
    assert said.status == 0 and (
        f"of model {model} (a run of adapt) and estimated real ones, in 3 episodes; 91.7% of their rows"
        in said.plain
    )
    (out / PROVENANCE).write_text("{}")
    said = colaworld("data", "inspect", out, "--episodes", 1)
    assert said.status == 0 and "latent actions cannot be told" in said.plain
    assert "latent actions" not in colaworld("data", "inspect", scene, "--episodes", 1).plain


def test_the_layout_is_lerobots(adapted, scene, tmp_path, colaworld) -> None:
    """Of each column: info.json, parquet's type, Hugging Face's features, statistics of the set and of each
    episode, against the rows themselves."""
    old, out = Path(shutil.copytree(scene, tmp_path / "old")), tmp_path / "out"
    for file in (old / "data").rglob("*.parquet"):
        features = {"action": {"dtype": "int64", "_type": "Value"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(pq.read_table(file).replace_schema_metadata(about), file)
    assert colaworld("label", adapted, "--data", old, "--real", "--out", out).status == 0
    info, stats = (
        json.loads((out / f"meta/{name}.json").read_text()) for name in ("info", "stats")
    )
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == 480
    columns = {
        CODE: "int64",
        VECTOR: "float",
        VALID: "bool",
        ESTIMATE: "int64",
        CONFIDENCE: "float",
    }
    found, episodes = rows(out), pq.read_table(out / "meta/episodes").to_pylist()
    (file,) = (out / "data").rglob("*.parquet")
    schema = pq.read_schema(file)
    told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(told) == ["action", *columns] and set(columns) <= set(info["features"])
    no_video = {name for name, f in info["features"].items() if f["dtype"] != "video"}
    assert set(schema.names) == no_video
    for name, kind in columns.items():
        feature, values = info["features"][name], found[name].reshape(480, -1).astype(float)
        wide = name == VECTOR
        assert feature["dtype"] == (kind if kind != "float" else "float32"), name
        assert feature["shape"] == [8 if wide else 1] and feature["names"] is None, name
        assert str(schema.field(name).type) == (
            "fixed_size_list<element: float>[8]" if wide else kind
        )
        inner = told[name]["feature"] if wide else told[name]
        assert inner == {"dtype": feature["dtype"], "_type": "Value"}
        wanted = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0)}
        wanted |= {"std": values.std(0), "count": [480]}
        for key, value in wanted.items():
            np.testing.assert_allclose(stats[name][key], value, rtol=1e-5, atol=1e-7)
        for row in episodes:
            part = values[row["dataset_from_index"] : row["dataset_to_index"]]
            np.testing.assert_allclose(
                row[f"stats/{name}/mean"], part.mean(0), rtol=1e-5, atol=1e-7
            )
            assert row[f"stats/{name}/count"] == [12]
    assert info["features"][ESTIMATE]["class_names"] == list(MOVES)
