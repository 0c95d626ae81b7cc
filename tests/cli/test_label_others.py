"""`colaworld label` by latent action models of others, from files in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from colaworld.contracts import to_float
from colaworld.data.labels import CODE, VALID, VECTOR, check_labels, read_labels
from colaworld.data.sources import open_source
from colaworld.models.latent_action.identity import published_hash
from colaworld.models.latent_action.published import load_published
from colaworld.models.latent_action.published.adaworld import ADAWORLD, AdaWorldLatents, Sizes
from colaworld.models.latent_action.published.villa_x import VillaXConfig, VillaXLatents

PLUGIN = Path(__file__).parents[1] / "models" / "latent_action" / "plugin_latents.py"
FEW = ("--episodes", "2")  # of the scene's 40
VILLA = VillaXConfig(
    **{"resolution": 8, "patch_size": 4, "d_t": 3, "encoder_depth": 1, "encoder_embed_dim": 12},
    **{"encoder_n_heads": 3, "map_heads": 2, "action_latent_dim": 5, "num_learned_tokens": 2},
    n_codes=7,
)


@pytest.fixture(scope="module")
def adaworld(tmp_path_factory) -> Path:
    """Continuous, of pairs of frames; of 1 block, so that its kind must be named."""
    sizes, file = Sizes(1, 8, 2, 64, 3), tmp_path_factory.mktemp("lam") / "lam.safetensors"
    model = randomised(AdaWorldLatents(sizes, ADAWORLD))
    name = "encoder.transformer_blocks.0.temporal_attn.rotary_embedding.freqs"
    frequencies = 10_000.0 ** (-torch.arange(0, 4, 2) / 4)
    save_file({name: frequencies, **model.state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def villa(tmp_path_factory) -> Path:
    """Codes, of up to three frames."""
    folder = tmp_path_factory.mktemp("villa")
    save_file(randomised(VillaXLatents(VILLA)).state_dict(), folder / "model.safetensors")
    described = {"architecture": "IgorModel", "config": vars(VILLA)}
    (folder / "model_config.json").write_text(json.dumps(described))
    return folder


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        value.normal_(generator=generator)
    return model


def rows(root: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(root / "data").sort_by("index")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def first_film(scene: Path) -> torch.Tensor:
    source = open_source(scene)
    frames = source.read(0, range(source.episodes[0].frames))
    return to_float(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]


def test_continuous_latents_of_pairs_of_frames(adaworld, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    call = ("label", adaworld, "--kind", "adaworld", "--data", scene, "--out", out, *FEW)
    said = colaworld(*call)
    assert said.status == 0 and "2 episodes, 24 frames, 22 of them with a valid action" in said.out
    model, found = load_published(adaworld, kind="adaworld"), rows(out)
    expected = model.infer_actions(first_film(scene)).codes[0, :, 0].numpy()
    np.testing.assert_allclose(found[VECTOR][:11], expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).min() > 1e-3  # the frames decide them
    assert CODE not in found and found[VALID][:12].tolist() == [True] * 11 + [False]
    said = read_labels(out)["model"]
    assert said["layout"] == "adaworld" and said["codebook_size"] is None
    assert (said["tokens"], said["dim"], said["window"]) == (1, 3, 2)
    assert said["hash"] == published_hash(model, kind="adaworld")
    again = colaworld(*call)
    assert again.status == 2 and "exists and is not empty" in again.err


def test_codes_of_a_window(villa, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    said = colaworld("label", villa, "--data", scene, "--out", out, *FEW)
    assert said.status == 0 and "of 7 codes in use" in said.out
    model, found = load_published(villa), rows(out)
    expected = model.infer_actions(first_film(scene))
    np.testing.assert_array_equal(found[CODE][:11], expected.indices[0].numpy())
    np.testing.assert_allclose(found[VECTOR][:11], expected.codes[0].flatten(1), rtol=1e-5)
    assert len(np.unique(found[CODE])) > 1
    told = colaworld("data", "inspect", out, "--episodes", 1).plain
    assert (
        f"of model {published_hash(model, kind='villa-x')[:16]} (a published model, villa-x)"
        in told
    )


def test_labels_of_another_model_are_refused(trained, villa, scene, tmp_path, colaworld) -> None:
    out = tmp_path / "out"
    assert colaworld("label", villa, "--data", scene, "--out", out, *FEW).status == 0
    said = colaworld("label", trained, "--data", out, "--in-place", *FEW)
    assert said.status == 2 and "are of another model" in said.err
    assert "(a published model, villa-x)" in said.err
    weights = load_file(villa / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "model_config.json").write_bytes((villa / "model_config.json").read_bytes())
    other = load_published(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="of another model: expected hash"):
        check_labels(out, published_hash(other, kind="villa-x"))


def test_a_layout_of_your_own(scene, tmp_path, colaworld, from_outside) -> None:
    from_outside(PLUGIN)
    save_file({"mean.weight": torch.eye(3)}, tmp_path / "theirs.safetensors")
    out = tmp_path / "out"
    said = colaworld("label", tmp_path / "theirs.safetensors", "--data", scene, "--out", out, *FEW)
    assert said.status == 0
    change = first_film(scene)[0].mean((-2, -1)).diff(dim=0)
    np.testing.assert_allclose(rows(out)[VECTOR][:11], change, atol=1e-6)


def test_what_none_can_do_is_refused_before_any_work(
    villa, adaworld, scene, tmp_path, colaworld
) -> None:
    out = tmp_path / "out"
    call = ("--data", scene, "--out", out)
    said = colaworld("label", villa, *call, "--real")
    assert said.status == 2 and "has no head that turns latent actions into real ones" in said.err
    said = colaworld("label", adaworld, *call)
    assert said.status == 2 and "no layout recognises" in said.err
    said = colaworld("label", villa, *call, "--kind", "colaworld")
    assert said.status == 2 and "is neither a run folder" in said.err
    said = colaworld("label", tmp_path / "nowhere", *call)
    assert said.status == 2 and "no such file or folder" in said.err
    assert not out.exists()
