"""Things by name: order, names that are taken, names that nobody registered."""

from __future__ import annotations

import sys

import pytest

from colaworld.registry import Later, Registry, from_outside, lazy_names


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(Registry, "every", [])
    made = Registry("fruit", LookupError, reserved=("any",))
    made.add("pear", 1)
    made.add("apple", 2)
    return made


def test_they_stand_in_the_order_of_registration(register) -> None:
    assert list(register) == ["pear", "apple"] and register["apple"] == 2


def test_the_same_twice_is_no_fault_and_another_of_the_name_is(register) -> None:
    register.add("pear", 1)
    for name in ("pear", "any"):
        with pytest.raises(LookupError, match=f"fruit '{name}': there is one of this name already"):
            register.add(name, 3)
    assert register == {"pear": 1, "apple": 2}


@pytest.mark.parametrize("given", [{"pear": 3}, {"plum": 3, "any": 4}])
def test_several_at_once_are_no_way_around_it(register, given) -> None:
    with pytest.raises(LookupError, match="there is one of this name already"):
        register |= given
    with pytest.raises(LookupError, match="there is one of this name already"):
        register.update(given)
    with pytest.raises(LookupError, match="there is one of this name already"):
        register["pear"] = 3
    assert register["pear"] == 1 and "any" not in register
    register |= {"pear": 1, "fig": 4}
    assert list(register)[-1] == "fig" and isinstance(register, Registry)


def test_a_name_that_nobody_registered(register) -> None:
    with pytest.raises(
        LookupError, match=r"no fruit 'aple' is .*: apple, pear; did you mean 'apple'"
    ):
        register["aple"]
    with pytest.raises(
        LookupError, match=r"known: apple, pear\. Import the file .*IMPORT=file\.py"
    ):
        register["xyz"]
    assert "xyz" not in register and register.get("xyz") is None


def test_what_comes_from_outside_is_forgotten(register) -> None:
    with from_outside():
        register.add("plum", 3)
        del register["pear"]
    assert list(register) == ["pear", "apple"]


def test_what_is_named_for_later_is_imported_when_it_is_called(tmp_path, monkeypatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "till.py").write_text(
        "def total(*prices, tip=0): return sum(prices) + tip"
    )
    monkeypatch.syspath_prepend(tmp_path)
    total = Later("shop.till:total")
    look_up = lazy_names("shop", total="till")
    assert "shop.till" not in sys.modules and total == Later("shop.till:total")
    assert total(1, 2, tip=3) == 6 and look_up("total")(4) == 4
    with pytest.raises(AttributeError, match="module 'shop' has no attribute 'price'"):
        look_up("price")
    for name in ("shop", "shop.till"):
        monkeypatch.delitem(sys.modules, name)
