"""update_codebook by hand, and a codebook's step as a whole: search, statistics, update.

Triton's kernel is checked in tests/kernels; the launches of a step are counted there, too.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from colaworld import ops
from colaworld.ops import _cuda, _dispatch, _triton

each = pytest.mark.parametrize("name", ["reference", "cpu"])


@each
def test_by_hand(name) -> None:
    codebook, count = torch.zeros(2, 1), torch.tensor([1.0, 3.0])
    total = torch.tensor([[2.0], [6.0]])
    packed = torch.tensor([[8.0, 2.0], [0.0, 0.0]])  # two rows of sum 8, none of the other
    with ops.force(name):
        ops.update_codebook(codebook, count, total, packed, decay=0.75, eps=0.5)
    assert count.tolist() == [1.25, 2.25]  # .75 x {1, 3} + .25 x {2, 0}
    assert total.flatten().tolist() == [3.5, 4.5]  # .75 x {2, 6} + .25 x {8, 0}
    # smoothed: (count + .5) / (3.5 + 2 x .5) x 3.5
    smooth = [1.75 / 4.5 * 3.5, 2.75 / 4.5 * 3.5]
    assert codebook.flatten().tolist() == pytest.approx([3.5 / smooth[0], 4.5 / smooth[1]])


def test_an_entry_that_nobody_ever_chose_is_finite() -> None:
    codebook, count, total = torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2)
    packed = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 1.0]])
    ops.update_codebook(codebook, count, total, packed, decay=0.5)
    assert codebook.isfinite().all() and not codebook[1].any()
    torch.testing.assert_close(codebook[2], torch.full((2,), 2.0), rtol=1e-4, atol=0)


def test_a_leaf_that_trains_is_outside_of_autograd() -> None:
    codebook = torch.zeros(2, 1, requires_grad=True)
    ops.update_codebook(codebook, torch.ones(2), torch.ones(2, 1), torch.ones(2, 2), decay=0.5)
    assert codebook.requires_grad and codebook.grad_fn is None and codebook.detach().all()


def test_tables_with_gaps() -> None:
    def state():
        return torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) + 1

    packed = torch.arange(20.0).view(5, 4)
    whole = [state()[:, :3].clone(), state()[:, 3].clone(), state()[:, 3:].clone()]
    parts = [state()[:, :3], state()[:, 3], state()[:, 3:]]
    for tables in (whole, parts):
        ops.update_codebook(*tables, packed, decay=0.9)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_errors_name_the_argument() -> None:
    good = [torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 3)]
    for place, bad, message in [
        (0, torch.zeros(3), r"codebook: expected \[K, d\], got \[3\]"),
        (1, torch.ones(2), r"count: expected \[3\], got \[2\]"),
        (1, torch.ones(3).long(), "count: expected a floating-point tensor, got torch.int64"),
        (2, torch.zeros(3, 3), r"total: expected \[3, 2\], got \[3, 3\]"),
        (3, torch.zeros(3, 2), r"packed: expected \[3, 3\], got \[3, 2\]"),
    ]:
        arguments = [bad if i == place else t for i, t in enumerate(good)]
        with pytest.raises(ValueError, match=message):
            ops.update_codebook(*arguments, decay=0.5)
    with pytest.raises(ValueError, match=r"decay: expected in \[0, 1\], got 1.5"):
        ops.update_codebook(*good, decay=1.5)
    with pytest.raises(ValueError, match=r"eps: expected > 0, got 0"):
        ops.update_codebook(*good, decay=0.5, eps=0)


def test_who_runs_it() -> None:
    table = torch.zeros(3, 2)
    assert [v.name for v in ops.explain("update_codebook", table) if v.would_run] == ["cpu"]
    with FakeTensorMode():
        table = torch.zeros(3, 2, device="cuda")
        on_gpu = {v.name: v for v in ops.explain("update_codebook", table)}
    assert on_gpu["triton" if _triton.INSTALLED else "cuda"].would_run
    assert on_gpu["cpu"].reason == "the tensors are on cuda"


# -- a whole step ------------------------------------------------------------------------------


def step(z, codebook, count, total) -> torch.Tensor:
    _, indices = ops.vector_quantize(z, codebook)
    packed = ops.code_statistics(z, indices, codebook.shape[0])
    ops.update_codebook(codebook, count, total, packed, decay=0.9)
    return indices


def fake_state(N=4096, K=32, d=32) -> list[torch.Tensor]:
    """On a GPU that need not be there, within FakeTensorMode."""
    return [torch.empty(shape, device="cuda") for shape in ((N, d), (K, d), (K,), (K, d))]


class Called(TorchDispatchMode):
    """The names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(op.name())
        return op(*args, **(kwargs or {}))


@pytest.mark.skipif(
    not (_triton.INSTALLED and _cuda.ARCHITECTURES), reason="needs triton and a CUDA library"
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_on_a_gpu_it_is_three_calls_and_nothing_between() -> None:
    expected = ["vector_quantize", "code_statistics", "update_codebook_triton"]
    with torch.no_grad(), FakeTensorMode(), Called() as called:
        state = fake_state()
        called.names.clear()
        step(*state)
    assert called.names == [f"colaworld::{name}" for name in expected]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_compiles_as_one_graph(device) -> None:
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(step, fullgraph=True, backend=keep)
    if device == "cuda":
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            compiled(*fake_state())
        assert ("colaworld.update_codebook_triton.default" in graphs[0]) == _triton.INSTALLED
    else:
        torch.manual_seed(0)
        state = [torch.randn(50, 4), torch.randn(6, 4), torch.ones(6), torch.randn(6, 4)]
        plain = [t.clone() for t in state]
        assert torch.equal(compiled(*state), step(*plain))
        assert all(torch.equal(a, b) for a, b in zip(state, plain, strict=True))
    assert len(graphs) == 1


def test_a_forced_name_means_every_op_of_a_step() -> None:
    """Where the step has no kernel of that name, PyTorch's own of that device."""
    runs = {i.name: i.run for i in _dispatch._REGISTRY["update_codebook"]}
    assert runs["cuda"] is runs["cpu"] is runs["reference"]


def random_call(draw):
    """For test_any_call.py: on copies, since it writes in place."""
    K, d = draw.size(20), draw.size(20)
    codebook, count, total = draw.tensor(K, d), draw.tensor(K).abs(), draw.tensor(K, d)
    packed = draw.tensor(K, d + 1).abs()

    def call():
        made = [x.clone() for x in (codebook, count, total)]
        ops.update_codebook(*made, packed, decay=0.9)
        return made

    return call
