"""The C2SP layout: paths as the specification spells them, and framing that survives any cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RecordTooLarge
from audit.tiles import (
    Resource,
    bundle_path,
    frame,
    framed_bytes,
    parse_number_text,
    parse_resource,
    require_fits,
    tile_path,
    unframe,
)


def test_paths_are_those_of_the_specification() -> None:
    assert str(tile_path(0, 1234067)) == "tile/0/x001/x234/067"
    assert str(tile_path(2, 0)) == "tile/2/000"
    assert str(bundle_path(999)) == "tile/entries/999"
    assert str(bundle_path(1000)) == "tile/entries/x001/000"


@given(st.integers(0, 2**40))
def test_a_path_reads_back(number: int) -> None:
    assert parse_number_text(str(bundle_path(number).relative_to("tile/entries"))) == number


@pytest.mark.parametrize(
    "path", ["1", "x001", "x000/001", "001/002", "0001", "a01", "x001/x002", "\u0660\u0660\u0661", "00 "]
)
def test_another_spelling_is_not_a_number(path: str) -> None:
    assert parse_number_text(path) is None


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.data())
def test_a_cut_bundle_gives_the_entries_that_are_whole(entries: list[bytes], data: st.DataObject) -> None:
    bundle = b"".join(map(frame, entries))
    assert unframe(bundle) == (entries, len(bundle))
    assert framed_bytes(entries) == len(bundle)
    cut = data.draw(st.integers(0, len(bundle)))
    found, used = unframe(bundle[:cut])
    assert found == entries[: len(found)]
    assert used <= cut
    assert used == framed_bytes(found)


def test_an_entry_over_the_length_prefix_does_not_fit() -> None:
    require_fits(bytes(65535))
    with pytest.raises(RecordTooLarge):
        require_fits(bytes(65536))


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("0/000", Resource(0, 0, 256)),
        ("entries/x001/x234/067", Resource(None, 1234067, 256)),
        ("1/x002/005.p/17", Resource(1, 2005, 17)),
        ("entries/000.p/255", Resource(None, 0, 255)),
    ],
)
def test_a_url_names_a_tile_or_bundle_of_some_width(text: str, resource: Resource) -> None:
    assert parse_resource(text) == resource


@pytest.mark.parametrize(
    "text",
    (
        "|0|0/|0/0|0/00|00/000|8/000|64/000|-1/000|entries/000/|0/000.p/0|0/000.p/256|0/000.p/01|0/000.p/|0/x000/001"
        f"|0/001/002|0/x001/x002|0/../000|entries/000.p/9/x|0/\u0660\u0660\u0660|0/000\n|entries/{'x999/' * 12}999"
    ).split("|"),
)
def test_any_other_path_is_no_tile(text: str) -> None:
    assert parse_resource(text) is None
