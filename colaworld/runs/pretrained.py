"""Weights in and out: published video models, and trained worlds exported for others.

    from_pretrained(folder | file | hub id)  ->  a video model, or a trained world
    export_run(run, folder)                  ->  config.json, safetensors (in shards), a model card

Only safetensors are read and written. The hub is asked only when a hub id is given, and what a folder
says of itself leads to nothing outside it. An export carries the sums of its files.
Not here: keys of published layouts (models/backbones), the text of the card (model_card.py).
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from colaworld import __version__
from colaworld.config import VERSION, ConfigError, from_dict, to_dict
from colaworld.data.config import DataConfig
from colaworld.files import SHARD_GB, FileError, check_recorded, read_json, recorded, seal
from colaworld.models.backbones import BackboneConfig, build_backbone, published_config
from colaworld.models.backbones.weights import (
    Layout,
    WeightsError,
    files_of,
    header,
    load_weights,
    match,
)
from colaworld.models.hub import HUB_NAME, PIPELINE, hub_package, local_folder
from colaworld.models.latent_action.quantizers import build_quantizer
from colaworld.models.low_rank import merged
from colaworld.models.world import World
from colaworld.models.world_model import TOKENIZER_MARK
from colaworld.runs.build import build_model
from colaworld.runs.config import RunConfig, read_config
from colaworld.runs.estimates import head_error_at
from colaworld.runs.load import (
    check_model,
    check_quantised,
    finished_weights,
    frame_size,
    trained_as,
    trained_rate,
    without_world,
)
from colaworld.runs.model_card import model_card
from colaworld.training.checkpoint import write_folder
from colaworld.training.weights import finite, load_strictly

_TOKENIZER = "tokenizer"  # the folder of an export that holds a tokenizer's own files


def from_pretrained(
    source: str | Path,
    *,
    config: BackboneConfig | None = None,
    text: Literal["removed", "null", "full"] = "removed",
    causal: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    verify: bool = True,
) -> nn.Module | World:
    """A pre-trained video model in its published layout, or an exported world.

    Args:
        source: a folder with config.json and safetensors (shards too), a safetensors file (needs
            `config`), the folder of a finished run, or a hub id such as
            "hpcai-tech/OpenSora-STDiT-v3".
        config: of a video model; None: read from config.json.
        text: a video model's cross-attention: removed (CoLA-World), fed with the null caption, or
            with captions. Exported worlds have their own.
        causal: a video model's attention sees no later frame (CoLA-World).
        device, dtype: where each tensor of a video model goes, one at a time; dtype None: as stored.
            A world is read on the CPU and moved; its codebook and tokenizer keep their dtype.
        revision: of the hub id.
        tokenizer: where a world's tokenizer is (a folder, a file or a hub id), in place of what its
            config.json says. One that lies outside the folder must be named here.
        verify: compare files with the sums recorded at the export; False saves reading them twice.

    Returns:
        A video model (`models.backbones.backbone.Backbone`), or a `models.world.World` with the
        sampler of its run, in evaluation mode.

    Raises:
        WeightsError: nothing readable there; keys missing, left over or of another shape; a tensor
            that is not finite.
        FileError: a file is not as it was written.
        ConfigError: a config.json that describes something else, or leads out of its folder; a world
            without codes yet.
    """
    folder = _find(source, revision)
    described = None if config is not None or folder.is_file() else _described(folder)
    if described is not None and "model" in described:
        return _world(folder, described, device, dtype, tokenizer, verify)
    if config is None:
        if described is None:
            raise WeightsError(f"{folder}: no config.json says what this is; pass config=")
        config = published_config(described, text=text, causal=causal, source=str(folder))
    with torch.device("meta"):
        generator = build_backbone(config)
    load_weights(generator, folder, generator.layout(), device=device, dtype=dtype, verify=verify)
    return generator.eval()


def export_run(run: Path, out: Path, *, shard_gb: float = SHARD_GB) -> Path:
    """Write a finished run for others, at once or not at all.

    What is personal to a machine (paths) stays out. Returns `out`. Raises ConfigError on a run that
    is not finished or has no codes yet, an `out` that is something else, or a shard size that is not
    positive; WeightsError or FileError on weights that are not finite or not as they were written.
    """
    config = read_config(run)
    weights = finished_weights(run)
    if weights is None:
        raise ConfigError(
            f"{run} is not finished: it has no weights/model.safetensors; train it to its end"
        )
    if (why := without_world(config.parts())) is not None:
        raise ConfigError(f"{run} is a run of {config.recipe}: {why}")
    check_recorded(weights.parent)
    check_model(config, trained_as(weights), run)
    _check_codes(config, weights, run)
    if not 0 < shard_gb < float("inf"):
        raise ConfigError(f"--shard-gb: expected a size above 0, got {shard_gb}")
    if out.exists() and not _may_be_replaced(out):
        raise ConfigError(f"--out {out}: exists and is no exported model; name another folder")
    config, lora = _without_lora(config), config.model.of("lora") if adds_lora(config) else None
    evaluation = _json(run / "evaluation.json") if (run / "evaluation.json").is_file() else None
    described = {
        "colaworld": __version__,
        "config_version": VERSION,
        "recipe": config.recipe,
        "backbone_weights": _public_name(config.backbone_weights),
        "model": to_dict(config.model),
        "sampler": to_dict(config.sampler),
        "schedule": list(config.schedule),
        # What `parts` follows from, also where a phase is your own; `init_from` may be a path.
        "phases": {p.name: to_dict(replace(p, init_from=None)) for p in config.scheduled()},
        "frames": _frames(evaluation, config),
        "action_contract": to_dict(config.action_contract),
        "action_head_error": head_error_at(run),
    }
    tokenizer = Path(getattr(config.model.tokenizer, "path", "") or "\0").expanduser()
    brought = tokenizer.exists()  # on this machine; a hub's name is found elsewhere too
    if brought:
        described["model"]["tokenizer"]["path"] = f"./{_TOKENIZER}"

    def fill(temporary: Path) -> None:
        source = weights
        if lora is not None:
            source = temporary / ".merged.safetensors"
            save_file(merged(load_file(weights), lora), source)
        _save_shards(source, temporary, int(shard_gb * 1e9))
        if lora is not None:
            source.unlink()
        if brought:
            inner = getattr(config.model.tokenizer, "subfolder", "")  # of a whole pipeline
            _bring(tokenizer, temporary / _TOKENIZER, inner)
        files = [p for p in sorted(temporary.rglob("*")) if p.is_file()]
        sums = {p.relative_to(temporary).as_posix(): recorded(p) for p in files}
        sealed = seal({**described, "files": sums})
        (temporary / "config.json").write_text(json.dumps(sealed, indent=1) + "\n")
        (temporary / "README.md").write_text(model_card(described, config, evaluation))

    write_folder(out, fill, weights.stat().st_size)
    return out


def adds_lora(config: RunConfig) -> bool:
    """Whether a run has LoRA beside its video model."""
    return "lora" in config.parts()


def _without_lora(config: RunConfig) -> RunConfig:
    """The run as if the video model itself had trained, for weights with LoRA multiplied out."""
    parts = {name: part for name, part in config.model.parts.items() if name != "lora"}
    phases = {}
    for name, phase in config.phases.items():
        trained = tuple("backbone" if part == "lora" else part for part in phase.train)
        rates = tuple(("backbone" if p == "lora" else p, rate) for p, rate in phase.lr_multipliers)
        phases[name] = replace(phase, train=trained, lr_multipliers=rates)
    return replace(config, phases=phases, model=replace(config.model, parts=parts))


def _check_codes(config: RunConfig, weights: Path, run: Path) -> None:
    """ConfigError where the stored quantizer has no codes yet."""
    quantizer = build_quantizer(config.model.quantizer, config.model.idm.dim)
    keys = [key for key in header(weights) if key.startswith("quantizer.")]
    with safe_open(weights, framework="pt") as opened:
        stored = {key.removeprefix("quantizer."): opened.get_tensor(key) for key in keys}
    load_strictly(quantizer, stored, source=str(weights))
    check_quantised(quantizer, run)


def _may_be_replaced(folder: Path) -> bool:
    """Empty, or an export and nothing beside it: what replaces it deletes all that is there."""
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else {"a file"}
    if "config.json" not in names:
        return not names
    others = [
        n for n in names - {"config.json", "README.md", _TOKENIZER} if not n.startswith("model")
    ]
    return not others and "colaworld" in _json(folder / "config.json")


def push_to_hub(
    folder: Path, repo_id: str, *, private: bool = True, token: str | None = None
) -> str:
    """Upload an exported folder; returns its address. Needs the extra `hub` and a login."""
    if not HUB_NAME.fullmatch(repo_id):
        raise ConfigError(f"--push: expected OWNER/NAME, got {repo_id!r}")
    api = hub_package("--push needs").HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))


def _world(
    folder: Path,
    described: dict[str, Any],
    device: torch.device | str,
    dtype: torch.dtype | None,
    tokenizer: str | None,
    verify: bool,
) -> World:
    version = described.get("config_version", VERSION)
    if version != VERSION:
        raise ConfigError(
            f"{folder}/config.json: config_version {version} is not {VERSION}, which this release reads"
        )
    keys = ("recipe", "schedule", "phases", "model", "sampler", "action_contract")
    known = copy.deepcopy({k: described[k] for k in keys if k in described})
    check_recorded(folder, verify=verify, ours=True)
    config = from_dict(RunConfig, known, where=f"{folder}/config.json")
    config = _with_tokenizer(config, folder, tokenizer, own="colaworld" not in described)
    _check_size(config, folder)
    model = build_model(config, weights=False)
    if not hasattr(model, "conditioner"):
        raise ConfigError(
            f"{folder}: a video model without latent actions; pass config= to load it as one"
        )
    mark = {k: v for k, v in model.state_dict().items() if k == TOKENIZER_MARK}
    load_weights(model, folder, Layout(constants=mark), verify=None)
    check_quantised(model.quantizer, folder)
    for name, child in model.named_children() if dtype is not None else ():
        if name not in ("quantizer", "tokenizer"):  # codes as trained; a dtype of its own
            child.to(dtype)
    model = model.to(device)
    seen = described.get("frames", described.get("data"))  # an export's, or a run's own
    seen = seen if isinstance(seen, dict) else {}
    said = {k: v for k, v in seen.items() if k in ("height", "width", "crop")}
    size = frame_size(from_dict(DataConfig, said, where=f"{folder}/config.json: frames"))
    return World(model.eval(), config.sampler, frame_size=size, actions=config.action_contract)


def _with_tokenizer(config: RunConfig, folder: Path, named: str | None, *, own: bool) -> RunConfig:
    """The configuration with the tokenizer that was `named`, or the one exported along.

    ConfigError where config.json leads elsewhere; a run of one's `own` may name files of this machine.
    """
    stored = getattr(config.model.tokenizer, "path", "")
    along = folder / _TOKENIZER
    if named is not None:
        path = named
    elif stored == f"./{_TOKENIZER}" and along.is_dir():
        path = str(along)
    elif not stored or (own and Path(stored).expanduser().exists()):
        return config
    else:
        raise ConfigError(
            f"{folder}/config.json: model.tokenizer.path is {stored!r}, which is not in this folder; "
            "to read it, or to fetch it from the hub, name it yourself: from_pretrained(..., "
            f"tokenizer={stored!r}), or --tokenizer of colaworld sample"
        )
    tokenizer: Any = config.model.tokenizer
    if not hasattr(tokenizer, "path"):
        raise ConfigError(f"tokenizer: {folder} has a {tokenizer.kind} one, which has no files")
    model = replace(config.model, tokenizer=replace(tokenizer, path=path))
    return replace(config, model=model)


def _check_size(config: RunConfig, folder: Path) -> None:
    """WeightsError, before any memory is taken, unless a model of this configuration has the tensors
    that are stored."""
    stored = sum(len(header(file)) for file in files_of(folder))
    for key, value in re.findall(
        r'"(\w*(?:depth|layers))": (\d+)', json.dumps(to_dict(config.model))
    ):
        if int(value) > stored:  # so many that even a model without storage would take for ever
            raise WeightsError(
                f"{folder}/config.json: {key} is {value}, but {stored} tensors are stored"
            )
    try:
        with torch.device("meta"):
            planned = build_model(config, weights=False)
    except (OverflowError, RuntimeError) as error:
        raise WeightsError(f"{folder}/config.json: no model has these sizes: {error}") from None
    match(planned, folder, Layout(drop=(TOKENIZER_MARK,)))


def _find(source: str | Path, revision: str | None) -> Path:
    """A local path; or the hub's copy of what an id names, fetched once."""
    try:
        path = local_folder(str(source), patterns=PIPELINE, revision=revision)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    if (path / "config.yaml").is_file() and not (path / "weights").is_dir():
        raise WeightsError(f"{path}: a run that is not finished; train it to its end")
    for inside in ("weights", "transformer"):  # a run, a diffusers pipeline
        if (path / inside / "config.json").is_file():
            return path / inside
    return path


def _described(folder: Path) -> dict[str, Any] | None:
    """config.json of a folder; a run's own holds the configuration one level down."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    described = _json(path)
    inner = described.get("config")
    return inner if isinstance(inner, dict) and "model" in inner else described


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _public_name(generator: str | None) -> str | None:
    """A hub id or a shipped name as it is, of a path only the last part."""
    if generator is None or generator == "nano":
        return generator
    local = Path(generator)
    return local.name if local.is_absolute() or local.exists() else generator


def _frames(evaluation: dict[str, Any] | None, config: RunConfig) -> dict[str, Any]:
    """What the world was trained to see."""
    data = config.data
    found: dict[str, Any] = {
        "frames_per_clip": data.frames_per_clip,
        "stride": data.stride,
        "crop": data.crop,
    }
    found |= {"height": data.height, "width": data.width, "fps": data.fps}
    found["rate"] = trained_rate(config)  # of its clips, also where no rate was asked for
    counts = (evaluation or {}).get("counts")
    if data.height is None and isinstance(counts, dict):
        found |= {k: counts[k] for k in ("height", "width") if isinstance(counts.get(k), int)}
    return found


def _bring(source: Path, target: Path, inner: str) -> None:
    """Copy a tokenizer's configuration and weights, and nothing else that lies beside them.

    `inner`: the folder in `source` they are in; it is one in `target` too.
    """
    target.mkdir()
    if source.is_file():
        shutil.copy(source, target / "model.safetensors")
        return
    for file in sorted((source / inner).rglob("*")):
        if file.suffix in (".json", ".safetensors"):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)


def _save_shards(weights: Path, folder: Path, most: int) -> None:
    """Copy tensors into files of at most `most` bytes each (a larger tensor has one of its own)."""
    parts: list[list[str]] = [[]]
    room = most
    total = 0
    with safe_open(weights, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118
            piece = opened.get_slice(key)
            size = _bytes(piece.get_shape(), piece.get_dtype())
            if parts[-1] and size > room:
                parts.append([])
                room = most
            parts[-1].append(key)
            room -= size
            total += size
        if len(parts) == 1:
            _save(opened, parts[0], folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, keys in enumerate(parts, 1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            _save(opened, keys, folder / name)
            where |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    files_of(folder)  # what was written can be found again


def _save(opened: Any, keys: list[str], file: Path) -> None:
    save_file(finite({key: opened.get_tensor(key) for key in keys}, file), file)


def _bytes(shape: list[int], dtype: str) -> int:
    """Bytes of a stored tensor; safetensors calls dtypes F32, BF16, I64, BOOL, ..."""
    bits = re.search(r"\d+", dtype)
    count = 1
    for n in shape:
        count *= n
    return count * (int(bits.group()) // 8 if bits else 1)
