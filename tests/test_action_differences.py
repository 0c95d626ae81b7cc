"""Two contracts that do not go together: what is refused, what is warned of, and with which words."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.action_differences import ActionMismatch, check_contract, differences, telling

NAMES = ("shoulder", "elbow", "grip")
SIZES = np.array([0.5, 1.2, 0.05])  # deviations, radians; the grip opens by centimetres
PLACES = np.array([0.0, 1.5, 0.04])


def contract(values: np.ndarray, **said) -> ActionContract:
    """What a set of rows [N, A] says of itself."""
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    columns = (values.mean(0), values.std(0), values.min(0), values.max(0), q01, q99)
    statistics = Normaliser("mean_std", len(values), *(tuple(map(float, c)) for c in columns))
    said = {
        "names": NAMES,
        "units": ("rad", "rad", "m"),
        "mode": "absolute",
        "frame": "joints",
    } | said
    return ActionContract(
        "action", "continuous", values.shape[1], **({"rate": 10.0} | said), normaliser=statistics
    )


def rows(seed: int = 0, n: int = 2000) -> np.ndarray:
    return PLACES + SIZES * np.random.default_rng(seed).normal(size=(n, 3))


ARM = contract(rows())
UNNAMED = contract(rows(), names=())


def kinds(model: ActionContract, data: ActionContract) -> list[tuple[str, str]]:
    return [(one.what, one.kind) for one in differences(model, data)]


def test_another_recording_of_the_same_arm_agrees_in_all() -> None:
    assert differences(ARM, contract(rows(1))) == []
    assert differences(ARM, contract(rows(2, 150))) == []
    moved_less = PLACES + 0.5 * SIZES + 0.5 * SIZES * np.random.default_rng(3).normal(size=(900, 3))
    assert differences(ARM, contract(moved_less)) == []


@pytest.mark.parametrize("swapped", [False, True])
def test_places_for_a_model_of_ways_are_refused_with_the_way_out(swapped) -> None:
    model, data = contract(np.diff(rows(), axis=0), mode="relative"), ARM
    if swapped:  # which nothing turns into places again
        model, data = data, model
    with pytest.raises(ActionMismatch) as caught:
        check_contract(model, data, where="run", data_where="set")
    assert ("--data.actions relative" in str(caught.value)) == (not swapped)


def test_columns_in_another_order_are_known_by_name() -> None:
    permuted = contract(rows(1)[:, [1, 0, 2]], names=("elbow", "shoulder", "grip"))
    (found,) = differences(ARM, permuted)
    assert found.kind == "wrong" and found.model == "shoulder, elbow, grip"
    assert found.data == "elbow, shoulder, grip"
    assert "column 1 of the data is column 0 of the model (shoulder)" in found.note


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
@pytest.mark.parametrize("names", [NAMES, (), ("motor_0", "motor_1", "motor_2")])
def test_columns_in_another_order_under_the_same_names_are_known_by_their_numbers(
    order, names
) -> None:
    model = contract(rows(), names=names)
    data = contract(rows(1)[:, order], names=names, units=("rad", "rad", "m"))
    found = [one for one in differences(model, data) if one.kind == "unlike"]
    moved = [at for at, place in enumerate(order) if at != place]
    assert len(found) == len(moved)
    for at, one in zip(moved, found, strict=True):
        assert f"column {order.index(at)} of the data" in one.note
        assert one.what == (NAMES[at] if names == NAMES else str(at))
    by_name = ("names of channels", "unknown") not in kinds(model, data)
    assert by_name == (names == NAMES)


def test_channels_that_look_alike_cannot_be_told_apart_and_their_names_are_missed() -> None:
    board = np.random.default_rng(0).uniform(0, 512, (500, 2))
    said = {"names": (), "units": ("px", "px"), "frame": "world"}
    found = differences(contract(board, **said), contract(board[:, ::-1], **said))
    assert [(one.what, one.kind) for one in found] == [("names of channels", "unknown")]
    assert found[0].note == "their order cannot be checked by name"


def test_degrees_for_radians() -> None:
    turned = rows(1) * [180 / np.pi, 180 / np.pi, 1]
    unsaid = contract(turned, units=())
    found = [one for one in differences(ARM, unsaid) if one.kind == "unlike"]
    assert [one.what for one in found] == ["shoulder", "elbow"]
    for one in found:
        assert (
            one.note[:2] in ("56", "57", "58")
            and "degrees where the model has radians?" in one.note
        )
        assert "std" in one.model and "std" in one.data
    backwards = [one for one in differences(unsaid, ARM) if one.kind == "unlike"]
    assert (
        "smaller" in backwards[0].note
        and "radians where the model has degrees" in backwards[0].note
    )
    assert ("unit of shoulder, elbow", "wrong") in kinds(
        ARM, contract(turned, units=("deg", "deg", "m"))
    )


def test_a_scale_must_be_off_in_deviation_and_in_range() -> None:
    values = rows(1)
    assert kinds(ARM, contract(values * [2.9, 1, 1])) == []
    assert kinds(ARM, contract(values * [3.3, 1, 1])) == [("shoulder", "unlike")]
    outlier = values.copy()
    outlier[0, 0] = 40.0  # one row that is off moves the range, and no quantile
    assert kinds(ARM, contract(outlier)) == []


def test_a_set_of_30_hz_for_a_model_of_10() -> None:
    fast = contract(rows(1), rate=30.0)
    (found,) = differences(ARM, fast)
    assert (found.kind, found.model, found.data) == ("wrong", "10 Hz", "30 Hz")
    assert "--data.fps 10" in found.note and "resample" in found.note  # it takes one action a step
    # A model that was trained on such a set at 10 frames a second takes three actions a step.
    strided = contract(rows(), rate=30.0).every(3)
    rate, size = differences(strided, fast)
    assert (rate.what, rate.model, rate.data) == ("rate", "10 Hz", "30 Hz")
    assert rate.note.startswith("--data.fps 10 takes every third frame and all actions in between")
    assert (size.what, size.kind) == ("channels", "wrong")
    assert differences(strided, fast.every(3)) == []
    assert "slower" in differences(fast, ARM)[0].note
    assert "no multiple" in differences(ARM, replace(ARM, rate=25.0))[0].note
    assert differences(ARM, replace(ARM, rate=10.05)) == []


def test_a_channel_that_is_missing_is_named() -> None:
    short = contract(rows(1)[:, :2], names=NAMES[:2], units=("rad", "rad"))
    (found,) = differences(ARM, short)
    assert (found.what, found.kind) == ("channels", "wrong")
    assert found.model == "3 (shoulder, elbow, grip)" and found.data == "2 (shoulder, elbow)"
    assert found.note == "missing in the data: grip"
    renamed = contract(rows(1), names=("shoulder", "elbow", "hand"))
    assert differences(ARM, renamed)[0].note == (
        "missing in the data: grip; unknown to the model: hand"
    )


def test_facts_that_contradict_are_wrong_and_those_not_stated_are_named() -> None:
    for field, value, what in (
        ("mode", "relative", "mode"),
        ("frame", "world", "frame of reference"),
        ("units", ("rad", "rad", "mm"), "unit of grip"),
    ):
        assert kinds(ARM, contract(rows(1), **{field: value})) == [(what, "wrong")]
    assert differences(ARM, contract(rows(1), frame=" Joints")) == []
    nothing = contract(rows(1), names=(), units=(), mode="", frame="", rate=None)
    missed = [
        ("rate", "unknown"),
        ("names of channels", "unknown"),
        ("unit of shoulder, elbow", "unknown"),
        ("unit of grip", "unknown"),
        ("mode", "unknown"),
        ("frame of reference", "unknown"),
    ]
    assert kinds(ARM, nothing) == missed and kinds(nothing, ARM) == missed


def test_what_the_model_has_never_seen_is_unlike_and_what_stands_still_is_not_judged() -> None:
    shifted = contract(rows(1) + np.array([0, 20, 0]))
    (found,) = differences(ARM, shifted)
    assert (found.what, found.kind) == ("elbow", "unlike") and "another origin" in found.note
    still = rows(1)
    still[:, 2] = 0.04
    assert kinds(ARM, contract(still)) == [("grip", "unknown")]
    assert kinds(contract(still), ARM) == [("grip", "unlike")]
    still[:, 2] = 4.0
    assert kinds(ARM, contract(still)) == [("grip", "unlike")]
    assert kinds(contract(still), contract(still)) == []


def test_too_few_rows_judge_nothing() -> None:
    few = contract(rows(1, 99) * 60)
    (found,) = differences(ARM, few)
    assert (found.what, found.kind) == ("statistics", "unknown") and "99 rows" in found.data
    (found,) = differences(ARM, replace(ARM, normaliser=Normaliser()))
    assert (found.kind, found.data) == ("unknown", "0 rows")


def test_classes_are_compared_by_name_and_order() -> None:
    keys = ActionContract(
        *("action", "discrete", 3, ("noop", "left", "right")),
        rate=10.0,
        normaliser=Normaliser(count=9, counts=(3, 6, 0)),
    )
    (found,) = differences(keys, replace(keys, names=("noop", "right", "left")))
    assert found.kind == "wrong"
    assert "another order: class 2 of the data is class 1 of the model (left);" in found.note
    other = ActionContract("action", "discrete", 2, ("noop", "left"), rate=10.0)
    assert differences(keys, other)[0].note == "missing in the data: right"
    assert kinds(keys, replace(keys, names=())) == [("names of classes", "unknown")]
    seen = replace(keys, normaliser=Normaliser(count=9, counts=(3, 5, 1)))
    assert kinds(keys, seen) == [("class right", "unknown")]
    assert kinds(keys, ARM) == [("kind", "wrong")]


def test_the_error_prints_both_sides_and_the_way_out(caplog) -> None:
    fast = contract(rows(1) * [60, 1, 1], rate=30.0, mode="")
    with pytest.raises(ActionMismatch) as error:
        check_contract(ARM, fast, where="runs/arm", data_where="data/other")
    text = str(error.value)
    assert text.startswith("data/other: its actions") and "runs/arm" in text
    assert ARM.hash in text and fast.hash in text
    assert "rate: model 10 Hz; data 30 Hz" in text and "shoulder: model" in text
    assert "mode: " not in text and "unlike-actions" not in text  # a rate cannot be waved through
    scaled = contract(rows(1) * [60, 1, 1], mode="")
    with pytest.raises(ActionMismatch, match=r"--data\.unlike-actions warn"):
        check_contract(ARM, scaled, where="runs/arm", data_where="data/other")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_contract(ARM, scaled, where="runs/arm", data_where="data/other", unlike="warn")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "mode: model absolute; data not known" in said[0]
    assert "59.4 times larger" in said[1]


def test_names_that_only_number_the_columns_tell_nothing() -> None:
    for names in (
        ("motor_0", "motor_1"),
        ("joint1", "joint2", "joint3"),
        ("a0+0", "a1+0", "a0+1", "a1+1"),
    ):
        assert telling(names) == ()
    for names in (("joint2", "joint1"), ("x", "y"), ("left_1", "right_2"), ("x+0", "y+0")):
        assert telling(names) == names
    motors = replace(ARM, names=("motor_0", "motor_1", "motor_2"))
    assert (
        kinds(ARM, motors)
        == kinds(motors, replace(ARM, names=()))
        == [("names of channels", "unknown")]
    )
