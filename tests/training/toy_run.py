"""A toy run for the tests of training: small, but with every kind of state a real one has.

As a script it plays a series of deaths: `toy_run.py OUT SPEC...`, where every SPEC is tried in a
forked process of its own that resumes the run in OUT and is killed (signal 9) at that moment:

    loss:N     in the N-th forward pass of that process
    fsync:N    at the N-th os.fsync         (before it happens)
    replace:N  at the N-th os.replace       (before it happens)
    replaced:N right after the N-th os.replace
    rmtree:N   at the N-th shutil.rmtree
    held:N     in the second forward pass after the N-th os.fsync began, which never ends
    none       never: the process must finish the run

A process that finishes before its moment comes is fine too. Not here: any assertion.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from colaworld.contracts import ClipBatch
from colaworld.training.config import AlarmConfig, GateConfig, TrainingConfig
from colaworld.training.phases import Phase
from colaworld.training.trainer import Trainer

CODES, WIDTH = 8, 4


class Quantizer(nn.Module):
    """Nearest code, straight through; counts uses so that dead codes can be re-seeded."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(CODES, WIDTH))
        self.register_buffer("unused", torch.zeros(CODES, dtype=torch.int64))

    def forward(self, z):  # [B, WIDTH] -> quantised [B, WIDTH], indices [B], loss
        indices = torch.cdist(z, self.codebook).argmin(1)
        codes = self.codebook[indices]
        with torch.no_grad():
            self.unused += 1
            self.unused[indices] = 0
        loss = (codes - z.detach()).square().mean() + 0.25 * (codes.detach() - z).square().mean()
        return z + (codes - z).detach(), indices, loss


class ToyModel(nn.Module):
    """idm, quantizer, conditioner, backbone; the backbone has a running statistic and dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.idm = nn.Linear(12, WIDTH)
            self.quantizer = Quantizer()
            self.conditioner = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.1))
            self.backbone = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12))


class ToyObjective:
    """Reconstruct a clip's mean frame through the codes; re-seeds codes unused for 3 passes."""

    codebook_size = CODES
    tokens = 1

    def __init__(self, model: ToyModel, *, hook=None) -> None:
        self.model = model
        self.hook = hook or (lambda batch, loss: loss)
        self.before = []  # what before_phase drew, for the tests

    def loss(self, batch, *, generator):
        x = batch.frames.float().flatten(2).mean(1) / 255  # [B, 12]
        z = self.model.idm(x)
        noise = torch.randn(z.shape, generator=generator)
        q, indices, vq = self.model.quantizer(z)
        y = self.model.backbone(self.model.conditioner(q + 0.1 * noise))
        loss = (y - x).square().mean() + vq
        self.z = z.detach().float()  # half precision under autocast
        return self.hook(batch, loss), {"indices": indices[:, None], "vq": vq}

    def before_phase(self, batches, *, generator):
        batch, _ = batches()
        with torch.no_grad():
            z = self.model.idm(batch.frames.float().flatten(2).mean(1) / 255)
            rows = torch.randint(len(z), (CODES,), generator=generator)
            jitter = 0.01 * torch.randn(CODES, WIDTH, generator=generator)
            self.model.quantizer.codebook.copy_(z[rows] + jitter)
        self.before.append(rows.tolist())

    def begin_step(self):
        pass

    def after_step(self, *, generator):
        quantizer = self.model.quantizer
        dead = (quantizer.unused > 3).nonzero().flatten()
        with torch.no_grad():
            rows = torch.randint(len(self.z), (len(dead),), generator=generator)
            quantizer.codebook[dead] = self.z[rows]
            quantizer.unused[dead] = 0
        return {"reseeded": float(len(dead))}, [(quantizer.codebook, dead)]


class ToyLoader:
    """Endless random clips, a pure function of the position."""

    def __init__(self, batch: int = 6) -> None:
        self.position, self.batch = 0, batch

    def __next__(self) -> ClipBatch:
        generator = torch.Generator().manual_seed(self.position)
        shape = (self.batch, 3, 3, 2, 2)
        frames = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        episode = torch.full((self.batch,), self.position)
        self.position += 1
        return ClipBatch(frames, episode, torch.arange(self.batch))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]

    def merge_states(self, states):
        return states[0]


PARTS = ("idm", "quantizer", "conditioner")
GATE = GateConfig(entropy=0.3, window=4, max_drift=1.0, min_steps=9)
PHASES = (
    Phase("warmup", "cola", PARTS, 14, learning_rate=1e-2, lr_warmup_steps=4, gate=GATE),
    Phase(
        "joint",
        "cola",
        (*PARTS, "backbone"),
        10,
        learning_rate=1e-2,
        lr_warmup_steps=4,
        lr_multipliers=(("backbone", 0.1),),
        alarm=AlarmConfig(floor=0.1, checks=3),
    ),
)
TRAINING = TrainingConfig(
    seed=3,
    batch_size=6,
    accumulate=2,
    ema_decay=0.9,
    checkpoint_every=4,
    keep_checkpoints=2,
    health_every=2,
    health_window=36,
    tensorboard=False,
)


def trainer(out, *, hook=None, model=None, loader=None, phases=PHASES, training=TRAINING, **more):
    """A Trainer on the toy; `hook(batch, loss) -> loss` sees every forward pass."""
    torch.manual_seed(5)  # dropout draws from the global state
    model = model or ToyModel()
    objective = ToyObjective(model, hook=hook)
    more.setdefault("config_yaml", "recipe: toy\ntraining: {seed: 3, max_steps: null}\n")
    return Trainer(
        model, {"cola": objective}, phases, loader or ToyLoader(), Path(out), training, **more
    )


def arm(spec: str):
    """Arrange this process's death; returns the hook for the objective."""
    kind, _, number = spec.partition(":")
    left = [int(number or 0)]

    def tick():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(call):
        def dying(*args, **kwargs):
            tick()
            return call(*args, **kwargs)

        return dying

    def after(call):
        def dying(*args, **kwargs):
            call(*args, **kwargs)
            tick()

        return dying

    if kind == "fsync":
        os.fsync = before(os.fsync)
    elif kind == "replace":
        os.replace = before(os.replace)
    elif kind == "replaced":
        os.replace = after(os.replace)
    elif kind == "rmtree":
        shutil.rmtree = before(shutil.rmtree)
    elif kind == "held":
        call, passes = os.fsync, [2]

        def never_ends(number):
            left[0] -= 1
            while left[0] == 0:
                time.sleep(1)
            call(number)

        def hook(batch, loss):
            passes[0] -= left[0] == 0
            if passes[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss

        os.fsync = never_ends
        return hook
    elif kind == "loss":

        def hook(batch, loss):
            tick()
            return loss

        return hook
    elif kind != "none":
        raise SystemExit(f"unknown moment {spec!r}")
    return None


def main() -> None:
    logging.basicConfig(level="WARNING")
    import rich.console  # noqa: F401
    import torch._dynamo  # noqa: F401 (the optimizer imports it; once here, not in every fork)

    out, specs = Path(sys.argv[1]), sys.argv[2:]
    for spec in specs:
        child = os.fork()
        if child == 0:
            hook = arm(spec)
            result = trainer(out, hook=hook, resume=True).run()
            os._exit(0 if result.status == "finished" else 3)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0):
            raise SystemExit(f"{spec}: wait status {status}")
        print(spec, "killed" if killed else "finished", flush=True)


if __name__ == "__main__":
    main()
