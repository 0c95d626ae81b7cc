"""Weights that a user names: tensors of any file, and nothing else of it."""

from __future__ import annotations

import os

import pytest
import torch

from colaworld.files import FileError
from colaworld.metrics.published import read_tensors


class Evil:
    """A pickle that would make a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run_and_nobody_is_told_how(tmp_path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2), "b": Evil(tmp_path / "made")}, file)
    with pytest.raises(FileError, match=r"w\.pth: expected a state dict of tensors alone") as found:
        read_tensors(file)
    assert "weights_only" not in str(found.value) and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2).to_sparse(), "a: expected a dense tensor of numbers, got a sparse"),
        (torch.ones(2, device="meta"), "a: expected a dense tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), "a: expected .* of torch.float8_e4m3fn"),
        (torch.ones(2) + 1j, "a: expected .* of torch.complex64"),
        (torch.full((2,), 1e300, dtype=torch.float64), "a: holds values that are not finite"),
    ],
)
def test_what_is_no_tensor_of_plain_numbers_is_named(tmp_path, value, said) -> None:
    torch.save({"a": value}, tmp_path / "w.pth")
    with pytest.raises(FileError, match=said):
        read_tensors(tmp_path / "w.pth")


def test_a_key_that_is_no_name_is_named(tmp_path) -> None:
    torch.save({1: torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(FileError, match=r"expected tensors by name, got a key 1"):
        read_tensors(tmp_path / "w.pth")
