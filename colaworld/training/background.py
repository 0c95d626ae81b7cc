"""A thread that writes beside the training loop, and copies of tensors for it to write.

One call at a time. What it raises is raised by whoever waits for it, so that nothing fails unseen.
Not here: what is written (checkpoint.py) and who has to wait for it (run_folder.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Files = Mapping[str, Mapping[str, Tensor]]  # file -> tensors by name


class Background:
    """Runs calls on a thread of its own. A process that ends does not wait for it by itself."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def start(self, call: Callable[[], Any]) -> None:
        """Begin `call()`. The one before must have been waited for."""
        assert self._thread is None

        def run() -> None:
            try:
                self._result = call()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def failed(self) -> bool:
        """Whether the latest call raised something that nobody has waited for yet."""
        return self._error is not None

    def wait(self) -> Any:
        """What the latest call returned, or raised, once it is over. None without one."""
        if self._thread is not None:
            self._thread.join()
        result, error = self._result, self._error
        self._thread = self._result = self._error = None
        if error is not None:
            raise error
        return result


def copied(files: Files) -> dict[str, dict[str, Tensor]]:
    """The same tensors in host memory, where no later step changes them.

    What stands in several files is copied once. From a GPU the copies lie in pinned memory, which
    torch keeps for the next time.
    """
    made: dict[object, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        key = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if key not in made:
            pinned = tensor.device.type == "cuda"
            target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            made[key] = target.copy_(tensor.detach(), non_blocking=pinned)
        return made[key]

    result = {
        name: {key: copy(tensor) for key, tensor in tensors.items()}
        for name, tensors in files.items()
    }
    for device in {tensor.device for tensors in files.values() for tensor in tensors.values()}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result
