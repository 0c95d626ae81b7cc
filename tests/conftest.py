"""What every test may use. Not here: helpers of one room, which stand in its own test files."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded generator: a test that draws numbers says so in its arguments."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Imports a file as COLAWORLD_IMPORT does; what it registers is forgotten afterwards."""
    from colaworld import registry  # not above: some tests set up the ops before they are imported
    from colaworld.cli.plugins import VARIABLE, import_plugins

    def load(path: Path) -> None:
        monkeypatch.setenv(VARIABLE, str(path))
        import_plugins()

    before = set(sys.modules)
    with registry.from_outside():
        yield load
    for name in sys.modules.keys() - before:
        if name.startswith("colaworld_plugin_"):
            del sys.modules[name]


@pytest.fixture
def damaged() -> Callable[..., bytes]:
    """damaged(content, draw): a bit flipped, eight bytes changed or the rest cut off; the place is below
    `below`, where that is given."""

    def damage(content: bytes, draw: random.Random, *, below: int | None = None) -> bytes:
        data = bytearray(content)
        at, kind = draw.randrange(below or len(data)), draw.randrange(4)
        if kind < 2:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at : at + 8] = draw.randbytes(8)
        else:
            del data[at:]
        return bytes(data)

    return damage


@pytest.fixture
def heard_hangup() -> Iterator[None]:
    """SIGHUP arrives, also where the tests run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the package remembers of data sets stays out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLAWORLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A CUDA device. Skips without one, unless FAIL_WITHOUT_CUDA=1 is set.

    A GPU job sets the variable, so that it cannot pass by skipping everything.
    """
    if not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA", "0") not in ("", "0"):
            pytest.fail("FAIL_WITHOUT_CUDA is set, but torch sees no CUDA device")
        pytest.skip("no CUDA device")
    return torch.device("cuda")
