"""The hash of a model's latent actions: moved by whatever moves them, and by nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from colaworld.config import to_dict
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.identity import latent_action_hash
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world_model import WorldModel

CONFIG = ModelConfig(
    idm=IDMConfig(depth=1, width=32, heads=2), quantizer=VQConfig(unquantized_steps=0), window=4
)


def _model(config: ModelConfig = CONFIG) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(config)


def test_only_what_decides_the_actions_counts() -> None:
    model = _model()
    first = latent_action_hash(model)
    assert len(first) == 64 and latent_action_hash(_model()) == first
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1)
        next(model.conditioner.parameters()).add_(1)
        assert latent_action_hash(model) == first
        for part in (model.idm, model.quantizer):
            weight = next(part.parameters())
            weight.view(-1)[0] += 1e-6
            assert latent_action_hash(model) != first
            weight.view(-1)[0] -= 1e-6
            weight.copy_(
                next(getattr(_model(), "idm" if part is model.idm else "quantizer").parameters())
            )
        assert latent_action_hash(model) == first


def test_what_no_tensor_tells_counts_too() -> None:
    first = latent_action_hash(_model())
    heads = replace(CONFIG, idm=replace(CONFIG.idm, heads=4))
    window = replace(CONFIG, window=5)
    assert len({first, latent_action_hash(_model(heads)), latent_action_hash(_model(window))}) == 3
    assert latent_action_hash(_model().to(torch.bfloat16)) != first


def test_labels_from_before_a_field_keep_their_name() -> None:
    """The hash as it was when IDMs had no `input` or `standardise_frames` and quantizers no `scale_floor`, spelled out."""
    model = _model()
    idm, quantizer = (to_dict(part) for part in (model.config.idm, model.config.quantizer))
    assert idm.pop("standardise_frames") is False
    assert idm.pop("input") == "frame" and quantizer.pop("scale_floor") == 0.0
    said = {"idm": idm, "quantizer": quantizer, "window": 4}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for part in ("idm", "quantizer"):
        for name, value in sorted(getattr(model, part).state_dict().items()):
            digest.update(f"{part}.{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    assert latent_action_hash(model) == digest.hexdigest()
    kinds = [
        latent_action_hash(_model(replace(CONFIG, idm=replace(CONFIG.idm, input=kind))))
        for kind in ("frame", "difference", "tubelet")
    ]
    assert len(set(kinds)) == 3 and kinds[0] == digest.hexdigest()
