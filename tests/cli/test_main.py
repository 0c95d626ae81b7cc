"""The `colaworld` command as a whole: verbs, help, exit statuses, and no traceback for a caller."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

import colaworld as package
from colaworld.cli import errors
from colaworld.cli.main import VERBS, main
from colaworld.config import ConfigError
from colaworld.training.checkpoint import write_folder
from colaworld.training.protocols import CheckpointError, UnstableTrainingError


def _process(*command: object) -> subprocess.CompletedProcess[str]:
    home = str(Path(package.__file__).parent.parent)
    return subprocess.run(
        [str(c) for c in command],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_python_m_colaworld_is_colaworld(colaworld) -> None:
    said = _process(sys.executable, "-m", "colaworld", "--version")
    assert (said.returncode, said.stdout) == (0, package.__version__ + "\n")
    assert colaworld("--version").out == said.stdout
    script = Path(sys.executable).with_name("colaworld")
    if not script.exists():
        pytest.skip(f"no {script.name} beside this Python: the package is not installed")
    said = _process(script, "trian")
    by_module = _process(sys.executable, "-m", "colaworld", "trian")
    assert (said.returncode, said.stderr) == (by_module.returncode, by_module.stderr)
    assert said.returncode == 2 and "Did you mean 'train'?" in said.stderr


def test_help_lists_the_verbs_and_a_bare_call_is_an_error(colaworld) -> None:
    for flag in ("--help", "-h", "help"):
        said = colaworld(flag)
        assert said.status == 0 and not said.err
        assert all(f"  {verb} " in said.out for verb in VERBS)
    assert colaworld().status == 2


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        (["record"], ["--out", "--episodes", "--encoding.crf"]),
        (["data", "inspect"], ["--sheet", "--camera"]),
        (["train"], ["nano.cola", "nano.pretrain", "--resume", "--config"]),
        (
            ["train", "nano.cola"],
            [
                "--data PATH",
                "--out",
                "--resume",
                "--config",
                "--training.max-steps N",
                "--help-all",
            ],
        ),
        (
            ["train", "nano.cola", "--help-all"],
            [
                "--data.path",
                "--model.backbone.depth",
                "--phases.warmup.gate.entropy",
                "--training.max-steps",
                "--sampler.steps",
                "--evaluation.probe.ridge",
                "--resume",
                "Upper bound on the optimizer steps of EACH phase",
            ],
        ),
        (["evaluate"], ["--data PATH", "--evaluation.clips", "--compare", "--help-all"]),
        (["evaluate", "--help-all"], ["--data.path", "--evaluation.probe.ridge"]),
        (["adapt"], ["--data PATH", "--adapter-steps N", "--training.batch-size", "--help-all"]),
        (["probe"], ["--data PATH", "--kind", "--evaluation.probe-clips N", "--help-all"]),
        (["sample"], ["--codes", "--start", "--guidance"]),
        (["demo"], ["--long", "--recipe"]),
        (["info"], ["--json"]),
    ],
    ids=" ".join,
)
def test_help_of_a_verb_names_its_fields(colaworld, verb, fields) -> None:
    said = colaworld(*verb, "--help")
    assert said.status == 0
    for name in fields:
        assert name in said.plain


QUICK = [
    *[
        f"{verb} --help"
        for verb in (
            "adapt",
            "demo",
            "evaluate",
            "export",
            "goals",
            "info",
            "label",
            "plan",
            "plan-table",
            "probe",
            "record",
            "sample",
            "study",
        )
    ],
    *["bench --help", "data inspect --help", "data encode --help"],
    *["train nano.cola --help", "train wan.cola --help-all"],
    *[f"{verb} nowhere" for verb in ("data inspect", "evaluate", "export", "sample", "train")],
    *["data encode nano.cola --data nowhere", "evaluate RUN --data nowhere"],
    *["adapt nowhere --data . --out new", "adapt RUN --data nowhere --out new"],
    *["label RUN --data nowhere --out new", "label RUN --data . --out new --in-place"],
    *[
        "probe RUN --data nowhere",
        "evaluate RUN --evaluation.clips 1",
        "sample RUN --device tpu",
        "sample RUN --frames 0",
    ],
    *[
        "plan scene --run nowhere",
        "plan scene --planner nobody",
        "plan nowhere",
        "plan scene --mpc.replan 9",
    ],
    "record crafter --out new --size 0",
    *["train nano.cola --data nowhere", "train nano.cola --data . --device tpu"],
    *["train nano.cola --model.idm.width 0", "train nano.cola --no-such-option 1"],
]


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> dict[str, list[str]]:
    """Command -> its exit status and which slow packages are imported by then, all in one fresh process."""
    run = tmp_path_factory.mktemp("run")
    (run / "config.yaml").write_text("recipe: nano.cola\n")
    code = f"""
import sys
from colaworld.cli.main import main
for command in {QUICK}:
    try:
        status = main(command.replace("RUN", {str(run)!r}).split())
    except SystemExit as error:
        status = error.code
    slow = {{"torch", "pyarrow", "av", "diffusers"}} & sys.modules.keys()
    print("STARTED", command, status, *sorted(slow), sep=";")
"""
    lines = _process(sys.executable, "-c", code).stdout.splitlines()
    rows = [line.split(";")[1:] for line in lines if line.startswith("STARTED;")]
    return {command: found for command, *found in rows}


@pytest.mark.parametrize("command", QUICK)
def test_help_and_wrong_calls_import_no_torch(started, command) -> None:
    """It takes seconds, and nothing here needs it."""
    assert started[command] == ["0" if "--help" in command else "2"]


def test_no_command_starts_by_importing_the_compiler_of_torch() -> None:
    """It takes as long again as torch."""
    code = """
import sys, colaworld.models.world, colaworld.training.trainer
print('torch' in sys.modules, 'torch._dynamo' in sys.modules)
"""
    assert _process(sys.executable, "-c", code).stdout.split() == ["True", "False"]


def test_data_wants_inspect(colaworld, tmp_path) -> None:
    for arguments in ([], ["look"]):
        said = colaworld("data", *arguments)
        assert said.status == 2 and "colaworld data inspect PATH" in said.err
    said = colaworld("data", tmp_path)
    assert said.status == 2 and f"did you mean: colaworld data inspect {tmp_path}" in said.err


def test_errors_of_a_caller_are_one_line_unless_debugging(colaworld, monkeypatch, tmp_path) -> None:
    wrong = ("train", "nano.cola", "--data", tmp_path / "absent")
    said = colaworld(*wrong)
    assert said.status == 2
    assert said.err.count("\n") == 1 and "no such folder" in said.err
    assert said.err.startswith("colaworld train: ")
    for verb in (("data", "inspect", tmp_path / "absent"), ("sample", tmp_path)):
        assert "Traceback" not in colaworld(*verb).err
    monkeypatch.setenv("COLAWORLD_DEBUG", "1")
    for call in (wrong, ("data", "inspect", tmp_path / "absent"), ("evaluate", tmp_path)):
        with pytest.raises(ValueError, match=r"absent|not a run folder"):
            colaworld(*call)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a wrong key"), 2),
        (ImportError("an extra is missing"), 2),
        (CheckpointError("weights of another shape"), 2),
        (_caused(CheckpointError("not written"), OSError(28, "No space left on device")), 1),
        (PermissionError("read-only"), 1),
        (UnstableTrainingError("ten skips in a row"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_status_tells_a_wrong_call_from_failed_work(error, status, capsys) -> None:
    assert errors.report_error("colaworld train", error) == status
    assert capsys.readouterr().err == f"colaworld train: {error}\n"


def test_ctrl_c_is_130(colaworld, monkeypatch) -> None:
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("colaworld.cli.info.run", interrupted)
    said = colaworld("info")
    assert (said.status, said.err) == (130, "colaworld: stopped\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    shell = (
        f"{sys.executable} -m colaworld train nano.cola --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    said = _process("bash", "-c", shell)
    assert "Traceback" not in said.stderr and "Broken pipe" not in said.stderr
    assert said.stdout.splitlines()[-1] in ("0", "141")


def test_log_lines_are_safe_to_print_and_warnings_about_data_come_once() -> None:
    tidy = errors.Tidy()

    def passed(level: int, text: str, name: str = "colaworld.data.clips") -> str | None:
        record = logging.LogRecord(name, level, "x.py", 1, "said: %s", (text,), None)
        return record.getMessage() if tidy.filter(record) else None

    assert passed(logging.WARNING, "a\x1b[2J\nb") == "said: a\\x1b[2J\nb"
    assert passed(logging.WARNING, "a\x1b[2J\nb") is None
    assert passed(logging.WARNING, "c") == passed(logging.INFO, "c") == "said: c"
    for _ in range(2):
        assert passed(logging.INFO, "c") == "said: c"
        assert passed(logging.WARNING, "c", "colaworld.training.guard") == "said: c"


def test_a_tensor_file_that_the_disk_refused_is_work_that_failed(tmp_path) -> None:
    """safetensors tells a full disk in words of its own."""

    def full(folder):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"x: cannot be written.*make room") as caught:
        write_folder(tmp_path / "x", full)
    assert errors.status(caught.value) == errors.FAILED


def test_verbs_of_one_process_refuse_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "somewhere"]) == 2
    assert "runs in one process, got WORLD_SIZE 2" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["evaluate", "somewhere"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
