"""The cases of `colaworld bench` under pytest-benchmark, one test per case and implementation.

    python -m pytest benchmarks -k "st_attention and nano" --benchmark-group-by=param:label

The same definitions, gate and comparisons; implementations run one after another instead of in turns,
so on a busy machine the ratios of `colaworld bench` are the ones to quote.
"""

from __future__ import annotations

from itertools import cycle

import pytest

from colaworld.cli.bench import suite

SUITES = suite("case").SUITES


def _asked(config):
    return suite("case").Request(
        recipe=config.getoption("--recipe"),
        dtypes=(config.getoption("--bench-dtype"),),
        device=config.getoption("--bench-device"),
        samples=config.getoption("--bench-rounds"),
    )


def pytest_generate_tests(metafunc) -> None:
    if "label" in metafunc.fixturenames:
        cases, _ = suite("run").listed(SUITES, _asked(metafunc.config))
        timed = [c for c in cases if c.read is None]
        found = [(c.suite, c.label, impl) for c in timed for impl in c.providers]
        ids = [f"{label}/{impl}" for _, label, impl in found]
        metafunc.parametrize(("room", "label", "impl"), found, ids=ids)


def test_time(benchmark, request, room: str, label: str, impl: str) -> None:
    # Listed anew: what a case has drawn and built goes when its test is over.
    listed, _ = suite("run").listed([room], _asked(request.config), only=[label])
    (case,) = (case for case in listed if case.label == label)
    suite("gate").require_passing(case.tests)
    try:
        ((_, found),) = suite("run").ready(case, [impl])
        if isinstance(found, suite("case").Failed):
            pytest.fail(found.reason)
        if isinstance(found, suite("case").Skipped):
            pytest.skip(found.reason)
        turns, rounds = cycle(found), request.config.getoption("--bench-rounds")
        benchmark.extra_info.update(op=case.op, impl=impl, sizes=dict(case.sizes))
        benchmark.pedantic(lambda: next(turns)(), rounds=rounds, warmup_rounds=1)
    finally:
        case.close()
