"""The record of what a run has made: a product counts only with the key that it was made of, and only while it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base import Products, is_sealed, parse_object, read_json, seal
from pipeline.errors import InputError


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def products(tmp_path: Path, notes: list[str]) -> Products:
    return Products(tmp_path, notes.append)


def make(products: Products, name: str, key: str) -> None:
    path = products.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(key)
    products.record(name, key)


def test_a_product_holds_while_its_key_and_its_file_do(products: Products) -> None:
    assert not products.is_made("models/a.npz", "1")
    make(products, "models/a.npz", "1")
    assert products.is_made("models/a.npz", "1")
    assert not products.is_made("models/a.npz", "2"), "made of something else"
    assert not products.is_made("models/b.npz", "1"), "another product"
    (products.folder / "models/a.npz").unlink()
    assert not products.is_made("models/a.npz", "1"), "its file is gone"


def test_keys_are_found_again_by_the_next_run(products: Products, notes: list[str]) -> None:
    make(products, "a", "1")
    make(products, "b", "2")
    make(products, "a", "3")
    again = Products(products.folder, notes.append)
    for one in (products, again):
        assert one["a"] == "3"
        assert "b" in one
        assert "c" not in one
        assert one.keys_of(["b"]) == {"b": "2"}
        assert one.snapshot() == {"a": "3", "b": "2"}
    assert again.is_made("a", "3")
    assert notes == []


def test_a_snapshot_does_not_change(products: Products) -> None:
    make(products, "a", "1")
    before = products.snapshot()
    make(products, "b", "1")
    assert before == {"a": "1"}
    before["c"] = "1"
    assert "c" not in products


def test_products__raise_on_keys_of_what_is_not_there(products: Products) -> None:
    with pytest.raises(KeyError):
        products["a"]
    with pytest.raises(KeyError):
        products.keys_of(["a"])


@pytest.mark.parametrize("content", ["", "{", '{"a": ', "[]", '"text"', "3", "null", '{"a": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_said_and_everything_is_made_again(
    products: Products, notes: list[str], content: str | bytes
) -> None:
    make(products, "a", "1")
    [record] = [path for path in products.folder.iterdir() if path.suffix == ".json"]
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    again = Products(products.folder, notes.append)
    assert not again.is_made("a", "1")
    assert again.snapshot() == {}
    [note] = notes
    assert str(record) in note
    make(again, "a", "1")
    assert Products(products.folder, notes.append).is_made("a", "1")
    assert len(notes) == 1


def test_a_product_of_other_bytes_is_not_made(products: Products) -> None:
    make(products, "a", "1")
    assert products.require("a") == products.folder / "a"
    (products.folder / "a").write_text("2")
    assert not products.is_made("a", "1")
    with pytest.raises(InputError, match="not the file"):
        products.require("a")
    (products.folder / "a").unlink()
    with pytest.raises(InputError, match="missing"):
        products.require("a")


KINDS = ["[]", "null", "3", "{", "", "[" * 100_000, '{"a": ' * 100_000, "\xff"]


@pytest.mark.parametrize("content", [*KINDS, '{"a": "1"}', '{"version": 2, "products": {"a": {"key": "1"}}}'])
def test_a_record_that_cannot_be_used_is_told(products: Products, notes: list[str], content: str) -> None:
    make(products, "a", "1")
    (products.folder / "products.json").write_text(content, encoding="latin-1")
    assert "a" not in Products(products.folder, notes.append)
    assert len(notes) == 1


@pytest.mark.parametrize("content", KINDS)
def test_json_of_another_kind_is_an_input_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gate.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"gate\.json"):
        read_json(path, lambda facts: facts["kind"])


def test_a_seal_covers_every_value() -> None:
    facts = {"counts": [1, 2.5], "name": "å", "more": {"x": None}}
    sealed = parse_object(json.dumps(seal(facts)))
    assert is_sealed(sealed)
    assert seal(sealed) == sealed
    assert not is_sealed(facts)
    for name, value in [("counts", [1, 2]), ("name", "a"), ("more", {}), ("new", 1)]:
        with pytest.raises(ValueError, match="checksum"):
            is_sealed(sealed | {name: value})
