"""What one file from outside can add: a part, an objective with real actions, a phase, a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from colaworld.cli.main import main
from colaworld.cli.plugins import import_plugins
from colaworld.config import ConfigError, load_yaml, to_yaml
from colaworld.models.config import ModelConfig
from colaworld.models.parts import PARTS, Part, build_order, register_part
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE
from colaworld.recipes import RECIPES, recipe, register_recipe
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig
from colaworld.runs.pretrained import export_run, from_pretrained
from colaworld.training.checkpoint import CheckpointError
from colaworld.training.config import OBJECTIVES
from colaworld.training.objectives import FlowObjective, register_objective

PLUGIN = Path(__file__).with_name("plugin_mapper.py")


@pytest.fixture
def plugin(from_outside):
    from_outside(PLUGIN)


@pytest.fixture(scope="module")
def with_actions(tmp_path_factory) -> Path:
    """A recorded set of the scene with its five moves."""
    out = tmp_path_factory.mktemp("recorded") / "set"
    assert main(["record", "scene", "--out", str(out), "--episodes", "10", "--steps", "12"]) == 0
    return out


def test_an_adapter_from_real_actions_trains_on_a_trained_world(
    plugin, tiny, with_actions, tmp_path, capsys
):
    """A world is trained; the adapter phase starts from it, and reads actions none of it changes."""
    first = tiny("nano.cola")
    first = replace(first, data=replace(first.data, path=with_actions))
    build_trainer(first, out=tmp_path / "first").run()

    config = tiny("toy.mapper")
    model = replace(config.model, parts=recipe("toy.mapper").model.parts)
    training = replace(config.training, max_steps=None)
    config = replace(config, model=model, training=training, data=first.data)
    config = config.with_phase("mapper", init_from=str(tmp_path / "first"), steps=60)
    assert config.parts() == ("idm", "quantizer", "conditioner", "mapper")
    assert config.uses_actions()
    trainer = build_trainer(config, out=tmp_path / "second")
    trainer.run()

    rows = [json.loads(line) for line in (tmp_path / "second/metrics.jsonl").open()]
    losses = [row["metrics"]["distance"] for row in rows]
    assert len(losses) == 60 and sum(losses[-20:]) < 0.9 * sum(losses[:20])
    before = build_trainer(first, out=tmp_path / "first", resume=True)
    before.run()  # is finished; gives the weights that it ended with
    for part in ("idm", "quantizer", "conditioner", "backbone"):
        ours, theirs = (getattr(t.model, part).state_dict() for t in (trainer, before))
        for key in ours:
            torch.testing.assert_close(ours[key].cpu(), theirs[key].cpu(), msg=key)
    again = load_yaml(tmp_path / "second/config.yaml", RunConfig)
    contract = again.action_contract  # of its data, and the only thing that was filled in
    assert again == replace(config, action_contract=contract)
    assert (contract.size, contract.rate, contract.normaliser.count) == (5, 10.0, 120)

    exported = export_run(tmp_path / "second", tmp_path / "export")
    assert str(tmp_path) not in (exported / "config.json").read_text()
    assert f"| real actions | {contract.told()} |" in (exported / "README.md").read_text()
    for folder in (tmp_path / "second", exported):
        world = from_pretrained(folder)
        assert world.actions == contract
        assert torch.equal(world.model.mapper.table.weight, trainer.model.mapper.table.weight)
        codes = world.model.mapper(torch.tensor([[0, 3, 1]]))
        generator = torch.Generator().manual_seed(0)
        made = world.rollout(torch.rand(1, 1, 3, 24, 32), codes, generator=generator)
        assert made.frames.shape == (1, 4, 3, 24, 32)


def test_it_is_on_the_command_line(plugin, with_actions, tmp_path, capsys):
    out = tmp_path / "run"
    call = [
        "train",
        "toy.mapper",
        "--data",
        str(with_actions),
        "--out",
        str(out),
        "--backbone-weights",
    ]
    call += ["none", "--model.parts.mapper.actions", "5", "--phases.mapper.steps", "2"]
    assert main([*call, "--training.batch-size", "2", "--training.no-tensorboard"]) == 0
    assert load_yaml(out / "config.yaml", RunConfig).model.parts["mapper"].actions == 5
    assert "trains mapper" in capsys.readouterr().out


def test_without_its_file_the_error_says_what_to_do(plugin, monkeypatch, tmp_path):
    text = to_yaml(recipe("toy.mapper"))
    for table, name in ((PARTS, "mapper"), (OBJECTIVES, "mapper")):
        del table[name]
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"no (part|objective) 'mapper' is registered; known"):
            load_yaml(tmp_path / "config.yaml", RunConfig)
        text = text.replace("parts:\n    mapper:\n      actions: 17", "parts: {}")


def test_a_set_without_actions_is_refused_by_a_phase_that_needs_them(plugin, tiny, tmp_path):
    config = tiny("toy.mapper")
    config = replace(config, model=replace(config.model, parts={"mapper": {}}))
    with pytest.raises(ValueError, match="actions"):
        build_trainer(config, out=tmp_path)


def test_init_from_names_what_is_wrong(tiny, tmp_path):
    for source, message in (
        (tmp_path / "none", r"expected the folder of a finished run or a safetensors file"),
        (tmp_path, r"expected the folder of a finished run"),
    ):
        config = tiny().with_phase("warmup", init_from=str(source))
        with pytest.raises(CheckpointError, match=message):
            build_trainer(config, out=tmp_path / "run").run()
    config = tiny().with_phase("joint", init_from=str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="there is no"):  # not after the phase before it
        build_trainer(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_from_a_run_whose_tokenizer_is_named_by_its_path(tiny, tmp_path):
    """Its weights hold the tokenizer's fingerprint alone."""
    sizes = {"image_widths": (8, 8), "image_layers": 1, "temporal_width": 8, "groups": 4}
    sizes |= {"temporal_multipliers": (1,), "temporal_layers": 1, "temporal_halve": ()}
    config = tiny()
    backbone = replace(config.model.backbone, in_channels=4)

    def with_tokenizer(name: str) -> RunConfig:
        vae = OpenSoraVAEConfig(path=str(tmp_path / name), **sizes)
        if not (tmp_path / name).exists():
            (tmp_path / name).mkdir()
            weights = OpenSoraVAE(replace(vae, path="")).state_dict()
            save_file(weights, tmp_path / name / "model.safetensors")
        model = replace(config.model, tokenizer=vae, backbone=backbone)
        return replace(config, schedule=("warmup",), model=model)

    first = build_trainer(with_tokenizer("vae"), out=tmp_path / "first")
    first.run()
    again = with_tokenizer("vae").with_phase(
        "warmup", init_from=str(tmp_path / "first"), learning_rate=1e-30
    )
    second = build_trainer(again, out=tmp_path / "second")
    second.run()
    for part in ("idm", "conditioner", "backbone"):
        ours, theirs = (getattr(t.model, part).state_dict() for t in (second, first))
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], msg=key)
    other = with_tokenizer("other").with_phase("warmup", init_from=str(tmp_path / "first"))
    with pytest.raises(ValueError, match="is not the tokenizer that these weights"):
        build_trainer(other, out=tmp_path / "third").run()


def test_names_that_are_taken():
    with pytest.raises(ConfigError, match=r"part 'idm': there is one of this name already"):
        register_part(Part("idm", ModelConfig, lambda config, model: model))
    with pytest.raises(ConfigError, match=r"part 'backbone'"):
        register_part(Part("backbone", ModelConfig, lambda config, model: model))
    with pytest.raises(ConfigError, match=r"objective 'cola': there is one of"):
        register_objective("cola", FlowObjective)
    with pytest.raises(ConfigError, match=r"recipe 'nano.cola': there is one of"):
        register_recipe("nano.cola", lambda: RunConfig())
    with pytest.raises(ConfigError, match=r"no part 'adaptr' is registered; known: action_head, "):
        build_order(("adaptr",))


def test_parts_that_need_each_other(monkeypatch):
    for name, needs in (("a", ("b",)), ("b", ("a",))):
        part = Part(name, ModelConfig, lambda config, model: model, needs=needs)
        monkeypatch.setitem(PARTS, name, part)
    with pytest.raises(ConfigError, match=r"need each other: a -> b -> a"):
        build_order(("a", "b"))


def test_a_file_that_is_not_there_or_fails_is_named(monkeypatch, tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for name, message in ((tmp_path / "none.py", "no such file"), (broken, "ZeroDivisionError")):
        monkeypatch.setenv("COLAWORLD_IMPORT", str(name))
        assert main(["train", "nano.cola", "--help"]) == 2
        assert (
            f"COLAWORLD_IMPORT: {name}" in (error := capsys.readouterr().err) and message in error
        )


def test_files_of_one_name_are_all_imported(from_outside, tmp_path):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.py")
        files[-1].write_text(
            "from colaworld.recipes import nano, register_recipe\n"
            f"register_recipe('{folder}.mine', nano.cola)\n"
        )
    from_outside(":".join(map(str, files)))
    import_plugins()  # each file once
    assert {"one.mine", "two.mine"} <= set(RECIPES)
