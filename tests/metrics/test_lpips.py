"""LPIPS against the authors' package on fixed inputs, and its files: strict, and named in errors."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.files import FileError
from colaworld.metrics.lpips import CHANNELS, LPIPS, MIN_SIDE, load_lpips


def wave(shape, step):
    """sin(step * i) over the elements of a shape."""
    count = math.prod(shape)
    return torch.sin(torch.arange(count, dtype=torch.float64) * step).reshape(shape).float()


def waves(trunk):
    """Weights by a formula, under the published keys: of the trunk, and of the linear heads."""
    trunk_weights = {}
    for i, (key, value) in enumerate(LPIPS(trunk).features.state_dict().items()):
        gain = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        trunk_weights[f"features.{key}"] = gain * wave(value.shape, 0.7 + 0.01 * i)
    heads = {
        f"lin{i}.model.1.weight": wave((1, c, 1, 1), 0.3 + 0.1 * i).abs()
        for i, c in enumerate(CHANNELS[trunk])
    }
    return trunk_weights, heads


def images():
    """Two pairs [2, 3, 40, 48]."""
    x = 0.5 + 0.5 * wave((2, 3, 40, 48), 0.37)
    return x, (x + 0.3 * wave(x.shape, 1.9)).clamp(0, 1)


def write(folder, trunk, *, trunk_weights=None, heads=None):
    """Files as published; torchvision's hold a classifier, too."""
    made = waves(trunk)
    name = {"alex": "alexnet-owt", "vgg": "vgg16"}[trunk]
    spare = {"classifier.1.weight": torch.zeros(2, 3)}
    torch.save(
        {**(made[0] if trunk_weights is None else trunk_weights), **spare}, folder / f"{name}.pth"
    )
    torch.save(made[1] if heads is None else heads, folder / f"{trunk}.pth")
    return folder


@pytest.mark.parametrize(
    ("trunk", "published"), [("alex", [0.1331521, 0.1164863]), ("vgg", [0.0581739, 0.0601676])]
)
def test_equals_the_package_lpips(trunk, published, tmp_path):
    """`published`: lpips 0.1.4 with net=trunk and pnet_rand=True, the weights of `waves` copied into its
    trunk (torchvision's layers) and heads, called with normalize=True on `images`; torch 2.13, a CPU."""
    network, known = load_lpips(write(tmp_path, trunk), trunk)
    assert not known
    x, y = images()
    assert network(x, y).tolist() == pytest.approx(published, abs=1e-6)


def by_hand(network, x, y):
    """The formula, place by place, of one pair of images in float64."""
    activations = []
    for image in (x, y):
        values = 2 * image.double() - 1
        values = (values - network.shift[0].double()) / network.scale[0].double()
        found, taps = [], {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[network.trunk]
        for i, layer in enumerate(network.features.double()):
            values = layer(values)
            if i in taps:
                found.append(values)
        activations.append(found)
    total = 0.0
    for f, g, head in zip(*activations, network.heads.double().parameters(), strict=True):
        _, height, width = f.shape
        for i in range(height):
            for j in range(width):
                gap = f[:, i, j] / f[:, i, j].norm() - g[:, i, j] / g[:, i, j].norm()
                total += float((head[0, :, 0, 0] * gap**2).sum()) / (height * width)
    return total


def test_equals_the_formula_written_out(tmp_path):
    network, _ = load_lpips(write(tmp_path, "alex"), "alex")
    x, y = images()
    found = float(network(x[0], y[0]))
    assert found == pytest.approx(by_hand(network, x[0], y[0]), rel=1e-5)


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_shape_symmetry_and_the_smallest_image(trunk, tmp_path):
    network, _ = load_lpips(write(tmp_path, trunk), trunk)
    side = MIN_SIDE[trunk]
    x, y = (image[..., :side, :side] for image in images())
    found = network(x[None], y[None])
    assert found.shape == (1, 2) and (found > 0).all()
    assert torch.allclose(found, network(y[None], x[None]), rtol=1e-6)
    assert torch.allclose(found, network(x[None], y[None], at_once=1), rtol=1e-5)
    assert network(x, x).tolist() == [0, 0]
    with pytest.raises(ValueError, match=f"H and W >= {side}, got"):
        network(x[..., 1:], y[..., 1:])


def test_what_is_wrong_in_a_file_is_named(tmp_path):
    trunk, heads = waves("alex")
    conv, lin = "features.8.weight", "lin2.model.1.weight"
    for name, change, says in [
        ("trunk_weights", {k: v for k, v in trunk.items() if k != conv}, f"{conv}: missing"),
        (
            "trunk_weights",
            {**trunk, conv: trunk[conv][:3]},
            f"{conv}: expected floats .*got .*\\[3, ",
        ),
        ("trunk_weights", {**trunk, "features.13.bias": trunk["features.0.bias"]}, "no such"),
        (
            "trunk_weights",
            {**trunk, conv: trunk[conv] / 0},
            f"{conv}: holds values that are not fin",
        ),
        ("trunk_weights", {"state_dict": trunk}, "state_dict: expected a tensor, got dict"),
        ("heads", {k: v for k, v in heads.items() if k != lin}, f"{lin}: missing"),
        ("heads", {**heads, lin: -heads[lin]}, f"{lin}: expected weights >= 0"),
    ]:
        write(tmp_path, "alex", **{name: change})
        file = "alexnet-owt.pth" if name == "trunk_weights" else "alex.pth"
        with pytest.raises(FileError, match=f"{file}: .*{says}"):
            load_lpips(tmp_path, "alex")
    with pytest.raises(FileError, match=r"expected one file vgg\.\* .*found none"):
        load_lpips(tmp_path, "vgg")


def test_safetensors_are_the_same_and_code_is_refused(tmp_path):
    x, y = images()
    wanted = load_lpips(write(tmp_path, "alex"), "alex")[0](x, y)
    trunk, heads = waves("alex")
    for file in tmp_path.iterdir():
        file.unlink()
    save_file(trunk, tmp_path / "alexnet.safetensors")
    save_file(heads, tmp_path / "alex.safetensors")
    assert torch.equal(load_lpips(tmp_path, "alex")[0](x, y), wanted)
    (tmp_path / "alex.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileError, match=r"alex\.safetensors: no safetensors file"):
        load_lpips(tmp_path, "alex")
    (tmp_path / "alex.safetensors").unlink()
    torch.save({"lin0.model.1.weight": Path("a class")}, tmp_path / "alex.pth")
    with pytest.raises(FileError, match=r"alex\.pth: expected a state dict of tensors alone"):
        load_lpips(tmp_path, "alex")


@pytest.mark.skipif(
    "COLAWORLD_LPIPS" not in os.environ,
    reason="COLAWORLD_LPIPS names no folder with alex.pth and alexnet-owt-7be5be79.pth",
)
def test_the_published_weights_give_a_published_value():
    """Black against white at 64 x 64: 0.8140 in the README of JunyaoHu/common_metrics_on_video_quality,
    by the package lpips."""
    network, known = load_lpips(Path(os.environ["COLAWORLD_LPIPS"]), "alex")
    assert known
    black = torch.zeros(3, 64, 64)
    assert float(network(black, 1 - black)) == pytest.approx(0.81401, abs=1e-4)
