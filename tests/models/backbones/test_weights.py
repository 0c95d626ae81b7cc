"""Published weights load key for key, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.weights import Layout, WeightsError, files_of, load_weights

SMALL = STDiT3Config(depth=2, width=24, heads=2, in_channels=4, predict_sigma=True, text="full")
FREQUENCIES = 10_000.0 ** (-torch.arange(0, 12, 2) / 12)


@pytest.fixture(scope="module")
def published(randomised):
    """A checkpoint with exactly the published keys, text and `rope.freqs` among them."""
    model = randomised(STDiT3(SMALL))
    return dict(model.state_dict()) | {"rope.freqs": FREQUENCIES}


def save(tensors, path):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_that_was_rounded_on_its_way_into_the_file_loads(
    rounded, dtype, published, tmp_path
):
    """Averaged weights are widened copies: a table may be float32 and hold bfloat16's numbers."""
    stored = published | {"rope.freqs": FREQUENCIES.to(rounded).to(dtype)}
    model = STDiT3(SMALL)
    load_weights(model, save(stored, tmp_path / "m.safetensors"), model.layout())
    assert "rope.freqs" not in model.state_dict()  # computed, whatever was stored


@pytest.mark.parametrize("text", ["full", "null", "removed"])
def test_a_published_checkpoint_loads_with_nothing_left_over(text, published, tmp_path):
    model = STDiT3(replace(SMALL, text=text))
    load_weights(model, save(published, tmp_path / "model.safetensors"), model.layout())
    for key, value in model.state_dict().items():
        assert torch.equal(value, published[key]), key
    assert text != "removed" or not any("cross_attn" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("t_block.1.bias"), r"missing t_block\.1\.bias"),
        (
            lambda c: c.update({"t_block.1.biass": c.pop("t_block.1.bias")}),
            r"missing t_block\.1\.bias; left over t_block\.1\.biass \(expected t_block\.1\.bias\?\)",
        ),
        (
            lambda c: c.update({"final_layer.linear.bias": torch.zeros(7)}),
            r"final_layer\.linear\.bias: expected \[32\], got \[7\]",
        ),
        (lambda c: c.update(extra=torch.zeros(1)), r"left over extra$"),
        (
            lambda c: c.update({"rope.freqs": FREQUENCIES * 1.01}),
            r"rope\.freqs: not the values",
        ),
        (lambda c: c.update({"rope.freqs": FREQUENCIES[:3]}), r"rope\.freqs: expected \[6\]"),
    ],
)
def test_a_misfit_is_named_and_nothing_changes(change, message, published, tmp_path):
    checkpoint = dict(published)
    change(checkpoint)
    model = STDiT3(SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, save(checkpoint, tmp_path / "m.safetensors"), model.layout())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_dropped_is_an_explicit_list(published, tmp_path):
    """A key that only looks like one of the text path is not swallowed."""
    model = STDiT3(replace(SMALL, text="removed"))
    checkpoint = dict(published) | {"spatial_blocks.0.cross_attention.proj.bias": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"left over spatial_blocks\.0\.cross_attention"):
        load_weights(model, save(checkpoint, tmp_path / "m.safetensors"), model.layout())


def test_shards_and_their_index(published, tmp_path):
    keys, where = sorted(published), {}
    for number, part in enumerate((keys[:9], keys[9:40], keys[40:])):
        name = f"model-0000{number + 1}-of-00003.safetensors"
        save({key: published[key] for key in part}, tmp_path / name)
        where |= dict.fromkeys(part, name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    model = STDiT3(SMALL)
    load_weights(model, tmp_path, model.layout())
    for key, value in model.state_dict().items():
        assert torch.equal(value, published[key]), key
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"missing: \['model-00002-of-00003"):
        load_weights(model, tmp_path, model.layout())
    for wrong in ("{}", "[]", '{"weight_map": {"a": 3}}'):
        index.write_text(wrong)
        with pytest.raises(WeightsError, match=r"index\.json: not an index of shards"):
            load_weights(model, tmp_path, model.layout())


def test_a_key_in_two_shards_is_refused(published, tmp_path):
    save(published, tmp_path / "a.safetensors")
    save({"t_block.1.bias": published["t_block.1.bias"]}, tmp_path / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"t_block\.1\.bias twice, in a\.safetensors and b\."):
        load_weights(STDiT3(SMALL), tmp_path, STDiT3(SMALL).layout())


def test_folders_that_do_not_say_which_file(tmp_path):
    with pytest.raises(WeightsError, match=r"no such file or folder"):
        files_of(tmp_path / "gone")
    with pytest.raises(WeightsError, match=r"expected one \.safetensors file.*found nothing"):
        files_of(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"holds model\.bin, but only safetensors are read"):
        files_of(tmp_path)
    for name in ("a", "b"):
        save({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"found a\.safetensors, b\.safetensors"):
        files_of(tmp_path)


def test_a_file_that_breaks_off(published, tmp_path):
    path = save(published, tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"m\.safetensors: not a readable safetensors file"):
        load_weights(STDiT3(SMALL), path)


def test_a_module_without_storage_gets_it_tensor_by_tensor(published, tmp_path):
    """On the meta device, with a dtype asked for: no storage but the one that stays."""
    half = {key: value.bfloat16() for key, value in published.items()}
    path = save(half, tmp_path / "m.safetensors")
    with torch.device("meta"):
        model = STDiT3(SMALL)
    load_weights(model, path, model.layout(), dtype=torch.float32)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and value.device.type == "cpu"
        assert torch.equal(value, half[key].float()), key
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(dict(STDiT3(SMALL).named_parameters()))
    path.unlink()  # nothing is a window into the file any more
    with torch.no_grad():
        assert model(torch.zeros(1, 4, 2, 4, 4), torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_values_that_the_cast_would_make_infinite_are_refused(device, tmp_path):
    path = save(
        {"weight": torch.tensor([[1e300]], dtype=torch.float64)}, tmp_path / "m.safetensors"
    )
    with pytest.raises(WeightsError, match=r"m.safetensors: weight holds values beyond .* float32"):
        load_weights(nn.Linear(1, 1, bias=False, device=device), path, dtype=torch.float32)
    save({"weight": torch.tensor([[1e6]])}, path)
    module = nn.Linear(1, 1, bias=False, device="meta")
    with pytest.raises(WeightsError, match="weight holds values beyond those of float16"):
        load_weights(module, path, dtype=torch.float16)
    load_weights(module, path, dtype=torch.bfloat16)
    assert module.weight.item() == 999424  # to eight bits


def test_a_layout_renames(tmp_path):
    module = torch.nn.Linear(2, 3)
    path = save({"w": torch.ones(3, 2), "b": torch.zeros(3)}, tmp_path / "m.safetensors")
    names = {"w": "weight", "b": "bias"}
    load_weights(module, path, Layout(rename=lambda key: names[key]))
    assert module.weight.eq(1).all() and module.bias.eq(0).all()


def test_buffers_that_no_file_holds_are_told(tmp_path):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(2), persistent=False)

    with torch.device("meta"):
        module = Module()
    with pytest.raises(WeightsError, match=r"table are stored nowhere"):
        load_weights(module, save({}, tmp_path / "empty.safetensors"))


def test_what_could_not_be_filled_changes_nothing(tmp_path) -> None:
    module = nn.Linear(2, 2, device="meta")
    module.register_buffer("table", torch.zeros(2, device="meta"), persistent=False)
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="table are stored nowhere"):
        load_weights(module, tmp_path)
    assert module.weight.is_meta and module.bias.is_meta
    whole = torch.ones(2, 2, dtype=torch.int8)
    save_file({"weight": whole, "bias": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="weight: expected floating-point numbers, got I8"):
        load_weights(nn.Linear(2, 2), tmp_path)
