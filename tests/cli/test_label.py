"""`colaworld label`: what is written, what is refused, and that whatever stops it, it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from colaworld.contracts import ActionSpec
from colaworld.data.config import EncodingConfig
from colaworld.data.labels import CODE, VALID, VECTOR, check_labels, read_labels
from colaworld.data.sources import open_source
from colaworld.data.video_writer import VideoWriter
from colaworld.models.latent_action.identity import latent_action_hash
from colaworld.runs.load import load_world

FEW = ("--episodes", "5")  # of the scene's 40: what is labelled is not the question


def digest(root: Path) -> dict[str, str]:
    """Every file of a set and its content."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(root: Path) -> dict[str, np.ndarray]:
    """The columns of a set, by the index of the frame."""
    table = pq.read_table(root / "data").sort_by("index")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def expected(run: Path, source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, vectors and validity of whole episodes, as a `World` infers them."""
    world, _ = load_world(run)
    codes, vectors, valid = [], [], []
    for e in source.episodes:
        frames = torch.from_numpy(source.read(e.index, range(e.frames))).permute(0, 3, 1, 2)
        found = world.infer_actions(frames[None])
        last = [*range(e.frames - 1), e.frames - 2]  # the last row repeats the one before
        codes.append(found.indices[0, last].numpy())
        vectors.append(found.codes[0, last].flatten(1).numpy())
        valid += [True] * (e.frames - 1) + [False]
    return np.concatenate(codes), np.concatenate(vectors), np.array(valid)


def test_a_v3_set_gets_columns(trained, scene, tmp_path, colaworld) -> None:
    before, out = digest(scene), tmp_path / "out"
    said = colaworld("label", trained, "--data", scene, "--out", out)
    assert (
        said.status == 0 and "40 episodes, 480 frames, 440 of them with a valid action" in said.out
    )
    assert digest(scene) == before and sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    codes, vectors, valid = expected(trained, open_source(scene))
    found = rows(out)
    np.testing.assert_array_equal(found[CODE], codes[:, 0])
    np.testing.assert_array_equal(found[VECTOR], vectors)
    np.testing.assert_array_equal(found[VALID], valid)
    assert len(np.unique(codes)) > 1
    np.testing.assert_array_equal(found["action"], rows(scene)["action"])
    info = json.loads((out / "meta/info.json").read_text())
    told = {
        name: (info["features"][name]["dtype"], info["features"][name]["shape"])
        for name in (CODE, VECTOR, VALID)
    }
    assert told == {CODE: ("int64", [1]), VECTOR: ("float32", [8]), VALID: ("bool", [1])}
    stats = json.loads((out / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats[VALID]["mean"], [440 / 480])
    np.testing.assert_allclose(stats[VECTOR]["mean"], vectors.astype(float).mean(0), rtol=1e-5)
    labels = open_source(out, action_column=CODE)
    names = tuple(map(str, range(8)))
    assert labels.action_spec == ActionSpec(CODE, "discrete", 8, names)


def test_the_provenance_says_whose_they_are(trained, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    assert colaworld("label", trained, "--data", scene, "--out", out, *FEW).status == 0
    world, _ = load_world(trained)
    said = check_labels(out, latent_action_hash(world.model))
    assert said["alignment"] == "row t leads from frame t to frame t + 1"
    assert said["model"]["codebook_size"] == 8 and said["model"]["tokens"] == 1
    assert said["model"]["dim"] == 8 and said["model"]["recipe"] == "nano.cola"
    assert said["key"]["frames"]["height"] == 32 and said["key"]["frames"]["stride"] == 1
    assert said["episodes"] == {"in_set": 40, "asked": 5, "labelled": 5, "split": "all"}
    assert said["counts"]["frames"] == 60 and said["counts"]["valid"] == 55
    found = rows(out)  # all episodes stay; those that were not asked for have no action
    assert found[VALID].sum() == 55 and not found[VALID][60:].any() and not found[CODE][60:].any()


def test_an_exported_world_gives_the_same_labels(
    trained, scene, tmp_path, colaworld, caplog
) -> None:
    world, a, b = tmp_path / "world", tmp_path / "a", tmp_path / "b"
    assert colaworld("export", trained, "--out", world).status == 0
    size = ("--data.height", "32", "--data.width", "32")
    assert colaworld("label", trained, "--data", scene, "--out", a, *FEW).status == 0
    said = colaworld("label", world, "--data", scene, "--out", b, *FEW, *size)
    assert said.status == 0
    assert digest(a) == digest(b)
    assert "its rows lead over" not in caplog.text
    said = colaworld(
        "label", world, "--data", scene, "--out", tmp_path / "c", *FEW, *size, "--data.stride", 2
    )
    assert said.status == 0  # without its data at hand it still knows its rate
    assert "its rows lead over 1/5 s" in caplog.text and "steps of 1/10 s" in caplog.text


def test_a_folder_of_videos_becomes_a_set(trained, film, tmp_path, colaworld) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    for number in range(3):
        film(films / f"{number}.mp4", frames=12 + number, seed=number)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(films.iterdir()):
            tar.add(path, path.name)
            np.save(tmp_path / "actions.npy", np.arange(12 + int(path.stem)) % 5)
            tar.add(tmp_path / "actions.npy", f"{path.stem}.npy")
    said = colaworld("label", trained, "--data", films, "--out", out)
    assert said.status == 0 and "3 episodes, 39 frames, 36 of them" in said.out
    made = open_source(out)
    assert [e.frames for e in made.episodes] == [12, 13, 14] and made.layout == "v3"
    shared = [os.path.samefile(films / f"{i}.mp4", e.path) for i, e in enumerate(made.episodes)]
    assert shared == [True] * 3
    codes, vectors, valid = expected(trained, made)
    np.testing.assert_array_equal(rows(out)[CODE], codes[:, 0])
    np.testing.assert_array_equal(rows(out)[VECTOR], vectors)
    np.testing.assert_array_equal(rows(out)[VALID], valid)
    copied, packed = tmp_path / "copied", tmp_path / "packed"
    assert (
        colaworld("label", trained, "--data", films, "--out", copied, "--copy-videos").status == 0
    )
    assert digest(copied) == digest(out)
    assert not os.path.samefile(open_source(copied).episodes[0].path, films / "0.mp4")
    # Films in a tar are encoded: the labels are of the film that was packed.
    assert colaworld("label", trained, "--data", tmp_path / "set.tar", "--out", packed).status == 0
    np.testing.assert_array_equal(rows(packed)[CODE], codes[:, 0])
    moves = [i % 5 for frames in (12, 13, 14) for i in range(frames)]
    assert rows(packed)["action"].tolist() == moves  # recorded ones come along
    a, b = made.read(2, range(14)).astype(float), open_source(packed).read(2, range(14))
    assert np.abs(a - b).mean() < 3


def test_frames_are_shown_as_in_training(trained, film, tmp_path, colaworld, caplog) -> None:
    """A run on 32x32 px as recorded; these are 48x64, and its own rate counts."""
    film(tmp_path / "films" / "a.mp4", frames=20, height=48, width=64)
    out = tmp_path / "out"
    call = ("label", trained, "--data", tmp_path / "films", "--out", out)
    assert colaworld(*call, "--data.stride", 3).status == 0
    assert "its rows lead over 1/3.333 s" in caplog.text  # of 10 frames/s
    assert "was trained on steps of 1/10 s" in caplog.text and "--data.fps 10" in caplog.text
    caplog.clear()
    film(tmp_path / "slow" / "a.mp4", frames=20, fps=5)
    slow = ("label", trained, "--data", tmp_path / "slow", "--out", tmp_path / "slow-out")
    assert colaworld(*slow).status == 0 and "its rows lead over 1/5 s" in caplog.text
    assert "--data.fps" not in caplog.text  # it has no frames in between
    said = read_labels(out)
    assert said["alignment"] == "row t leads from frame t to frame t + 3"
    frames = said["key"]["frames"]
    assert [frames[k] for k in ("height", "width", "crop", "stride")] == [32, 32, "center", 3]
    assert rows(out)[VALID].tolist() == [True] * 17 + [False] * 3
    assert open_source(out).episodes[0].width == 64  # the films stay as they are


def test_in_place(trained, other, scene, few, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    assert colaworld("label", trained, "--data", scene, "--out", out, *FEW).status == 0
    (few / ".gitattributes").write_text("mine")
    call = ("label", trained, "--data", few, "--in-place", *FEW)
    assert colaworld(*call).status == 0
    assert digest(few) == digest(out) | digest(few / ".gitattributes") | {
        ".gitattributes": hashlib.sha256(b"mine").hexdigest()
    }
    before = digest(few)
    said = colaworld(*call)  # again: there is nothing to do
    assert said.status == 0 and "5 episodes (5 of them before)" in said.out
    assert digest(few) == before
    hashes = [latent_action_hash(load_world(run)[0].model) for run in (trained, other)]
    for target in (("--in-place",), ("--out", tmp_path / "new")):
        said = colaworld("label", other, "--data", few, *target, *FEW)
        assert said.status == 2 and "another model" in said.err
        assert all(h in said.err for h in hashes)
    said = colaworld("label", trained, "--data", few, "--in-place", "--episodes", 6)
    assert said.status == 2 and "episodes: 5 then, 6 now" in said.err
    assert digest(few) == before and not list(tmp_path.glob(".*"))
    assert colaworld("label", other, "--data", few, "--in-place", *FEW, "--overwrite").status == 0
    check_labels(few, hashes[1])
    again = tmp_path / "again"
    assert colaworld("label", other, "--data", scene, "--out", again, *FEW).status == 0
    (few / ".gitattributes").unlink()
    assert digest(few) == digest(again)


def test_continuous_actions_have_no_codes(scene, tiny, trained, few, tmp_path, colaworld) -> None:
    run = tmp_path / "run"
    kind = ["--model.quantizer.kind", "gaussian"]
    rest = [*tiny[: (at := tiny.index("--model.quantizer.unquantized-steps"))], *tiny[at + 2 :]]
    assert colaworld("train", "nano.cola", "--data", scene, "--out", run, *kind, *rest).status == 0
    assert colaworld("label", trained, "--data", few, "--in-place", *FEW).status == 0
    call = ("label", run, "--data", few, "--in-place", "--overwrite")
    assert colaworld(*call).status == 0
    found, source = rows(few), open_source(scene)
    assert CODE not in found and read_labels(few)["columns"] == [VECTOR, VALID]
    assert CODE not in json.loads((few / "meta/info.json").read_text())["features"]
    world, _ = load_world(run)
    frames = torch.from_numpy(source.read(7, range(12))).permute(0, 3, 1, 2)
    wanted = world.infer_actions(frames[None]).codes[0].flatten(1).numpy()
    np.testing.assert_allclose(found[VECTOR][84:95], wanted, rtol=1e-4, atol=1e-5)


def test_what_a_new_set_leaves_out_is_said(trained, scene, tmp_path, colaworld, caplog) -> None:
    """Layout v2.1: one camera and its actions come along."""
    old, info = tmp_path / "old", json.loads((scene / "meta/info.json").read_text())
    table = pq.read_table(scene / "data").sort_by("index").slice(0, 12)
    for name, text in (
        ("tasks", {"task_index": 0, "task": ""}),
        ("episodes", {"episode_index": 0, "tasks": [""], "length": 12}),
        ("episodes_stats", {"episode_index": 0, "stats": {}}),
    ):
        (old / "meta").mkdir(parents=True, exist_ok=True)
        (old / f"meta/{name}.jsonl").write_text(json.dumps(text) + "\n")
    info["features"]["observation.state"] = {"dtype": "float32", "shape": [1], "names": None}
    info |= {"codebase_version": "v2.1", "chunks_size": 9, "total_episodes": 1, "total_frames": 12}
    info["data_path"] = "data/{episode_chunk:03d}/{episode_index}.parquet"
    info["video_path"] = "videos/{video_key}/{episode_chunk:03d}/{episode_index}.mp4"
    (old / "meta/info.json").write_text(json.dumps(info))
    (old / "data/000").mkdir(parents=True)
    pq.write_table(
        table.append_column("observation.state", pa.array(np.zeros(12))), old / "data/000/0.parquet"
    )
    film = old / "videos/observation.images.main/000/0.mp4"
    frames = open_source(scene).read(0, range(12))
    with VideoWriter(film, fps=10, height=32, width=32, encoding=EncodingConfig()) as video:
        for frame in frames:
            video.write(frame)
    out = tmp_path / "out"
    assert colaworld("label", trained, "--data", old, "--out", out).status == 0
    assert "left out: observation.state" in caplog.text
    assert "observation.state" in read_labels(out)["left_out"][0]
    found = rows(out)
    assert found["action"].tolist() == table["action"].to_pylist() and found[VALID].sum() == 11
    assert os.path.samefile(film, open_source(out).episodes[0].path)


def test_wrong_calls(trained, scene, film, tmp_path, colaworld) -> None:
    out, films = tmp_path / "out", tmp_path / "films"
    film(films / "a.mp4", height=32, width=32)
    film(films / "b.mp4", height=48, width=32)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, told in (
        ((trained, "--out", out), "--data: expected the data set"),
        ((trained, "--data", scene), "got neither"),
        ((trained, "--data", scene, "--out", out, "--in-place"), "got both"),
        ((tmp_path, "--data", scene, "--out", out), "neither a run folder"),
        ((trained, "--data", tmp_path / "no", "--out", out), "no such folder or file"),
        ((trained, "--data", tmp_path / "empty", "--out", out), "no video files in it"),
        ((trained, "--data", scene, "--out", tmp_path / "full"), "exists and is not empty"),
        ((trained, "--data", scene, "--out", scene / "x"), "choose a folder beside it"),
        ((trained, "--data", films, "--in-place"), "layout v3.0 alone"),
        ((trained, "--data", films, "--out", out), "a.mp4 has 32x32, b.mp4 has 48x32"),
        ((trained, "--data", scene, "--out", out, "--data.height", 16, "--data.width", 16), "was trained on frames of 32x32 px, got 16x16"),
        ((trained, "--data", scene, "--out", out, "--batch-size", 0), "batch-size"),
        ((trained, "--data", scene, "--out", out, "--split", "test"), "test"),
    ):  # fmt: skip
        said = colaworld("label", *arguments)
        assert said.status == 2 and told in said.plain, (arguments, said.plain)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_a_run_without_a_world(scene, tiny, tmp_path, colaworld) -> None:
    run = tmp_path / "run"
    rest = tiny[: tiny.index("--model.idm.depth")] + tiny[tiny.index("--training.batch-size") :]
    assert colaworld("train", "nano.pretrain", "--data", scene, "--out", run, *rest).status == 0
    said = colaworld("label", run, "--data", scene, "--out", tmp_path / "out")
    assert said.status == 2 and "no latent actions" in said.err


def test_broken_films_are_left_out_and_listed(trained, film, tmp_path, colaworld) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    for number in range(4):
        film(films / f"{number}.mp4", seed=number)
    (films / "1.mp4").write_bytes(b"no film")
    data = bytearray((films / "2.mp4").read_bytes())
    middle = data.index(b"mdat") + 4
    data[middle + 600 : middle + 3000] = bytes(2400)
    (films / "2.mp4").write_bytes(data)
    call = ("label", trained, "--data", films, "--out", out)
    said = colaworld(*call)
    assert said.status == 2 and "broken" in said.err and "--data.max-broken-share" in said.err
    said = colaworld(*call, "--data.max-broken-share", 0.6)
    assert said.status == 0 and "2 episodes" in said.out and "1 broken, left out" in said.out
    assert len(open_source(out).episodes) == 2
    listed = read_labels(out)["broken"]
    assert len(listed) == 2 and {re.match(r"\d\.mp4", line)[0] for line in listed} == {
        "1.mp4",
        "2.mp4",
    }


def test_actions_that_some_films_lack_stay_behind(
    trained, film, tmp_path, colaworld, caplog
) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number in range(2):
            tar.add(film(tmp_path / f"{number}.mp4", frames=12, seed=number), f"{number}.mp4")
        np.save(tmp_path / "actions.npy", np.arange(12) % 5)
        tar.add(tmp_path / "actions.npy", "0.npy")
    said = colaworld("label", trained, "--data", tmp_path / "set.tar", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert "actions left out: set.tar/1.mp4 has no column 'action'" in caplog.text
    assert "action" not in rows(tmp_path / "out") and len(rows(tmp_path / "out")[CODE]) == 24


def test_the_rate_is_that_of_the_films_where_the_first_is_broken(
    trained, film, tmp_path, colaworld
) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    for number, rate in enumerate([10, 10.001, 10]):
        film(films / f"{number}.mp4", seed=number, fps=rate)
    data = bytearray((films / "0.mp4").read_bytes())
    middle = data.index(b"mdat") + 4
    data[middle + 600 : middle + 3000] = bytes(2400)
    (films / "0.mp4").write_bytes(data)
    call = ("label", trained, "--data", films, "--out", out, "--data.max-broken-share", 0.6)
    said = colaworld(*call)
    assert said.status == 0 and "1 broken, left out" in said.out
    assert json.loads((out / "meta/info.json").read_text())["fps"] == 10


# -- stopping, going on --------------------------------------------------------------------------
