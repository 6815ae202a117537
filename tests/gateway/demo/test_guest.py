"""The guest's image, and the checks that must notice any harm done to it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.demo.errors import MissingProgram
from gateway.demo.guest import (
    FLOPPY_BYTES,
    PAGE_BYTES,
    READY,
    GuestLayout,
    build_boot_image,
    count_passes,
    memory_problems,
    pass_problems,
    xorshift_fill,
)

MIB = 1 << 20
SMALL = GuestLayout(start=MIB, hot=MIB + 4 * PAGE_BYTES, end=MIB + 8 * PAGE_BYTES)


def printed(count: int) -> bytes:
    return READY + b"".join(b"%d\n" % number for number in range(1, count + 1))


def dump(layout: GuestLayout, words: list[int]) -> bytearray:
    memory = bytearray(xorshift_fill(layout.seed, layout.size_bytes // 4))
    for index, number in enumerate(words):
        at = layout.hot - layout.start + index * PAGE_BYTES
        memory[at : at + 4] = number.to_bytes(4, "little")
    return memory


def problems(tmp_path: Path, before: bytearray, after: bytearray, passes: int) -> list[str]:
    (tmp_path / "before").write_bytes(before)
    (tmp_path / "after").write_bytes(after)
    return memory_problems(tmp_path / "before", tmp_path / "after", SMALL, passes)


@pytest.mark.real
def test_the_image_is_a_bootable_floppy_with_its_parameters(tmp_path: Path) -> None:
    image = build_boot_image(SMALL, tmp_path).read_bytes()
    assert len(image) == FLOPPY_BYTES
    assert image[510:512] == b"\x55\xaa"
    words = [int.from_bytes(image[at : at + 4], "little") for at in range(0x40, 0x54, 4)]
    assert words == [SMALL.start, SMALL.end, SMALL.hot, SMALL.seed, SMALL.ticks]


def test_a_missing_assembler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgram, match="binutils"):
        build_boot_image(SMALL, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 0},
        {"hot": MIB},
        {"end": MIB + 4 * PAGE_BYTES},
        {"start": MIB + 1},
        {"seed": 0},
        {"end": 1 << 31},
    ],
)
def test_an_impossible_layout_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="guest layout"):
        GuestLayout(**({"start": SMALL.start, "hot": SMALL.hot, "end": SMALL.end} | wrong))


@given(st.integers(min_value=0, max_value=120), st.integers(min_value=0, max_value=400))
def test_a_count_cut_anywhere_is_a_count(count: int, cut: int) -> None:
    text = printed(count)[:cut]
    assert count_passes(text) == max(0, text.count(b"\n") - 1)


@given(st.integers(min_value=3, max_value=60), st.data())
def test_a_number_lost_or_repeated_is_noticed(count: int, data: st.DataObject) -> None:
    lines = printed(count).splitlines(keepends=True)
    at = data.draw(st.integers(min_value=1, max_value=count - 1))
    lost = b"".join(lines[:at] + lines[at + 1 :])
    repeated = b"".join([*lines[: at + 1], *lines[at:]])
    for text in (lost, repeated):
        with pytest.raises(ValueError, match="printed"):
            count_passes(text)


@given(st.integers(min_value=12, max_value=60), st.data())
def test_any_changed_byte_on_the_serial_port_is_noticed(count: int, data: st.DataObject) -> None:
    text = bytearray(printed(count))
    at = data.draw(st.integers(min_value=0, max_value=len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(min_value=0, max_value=7))
    with pytest.raises(ValueError, match="the guest"):
        count_passes(bytes(text))


def test_the_fill_is_marsaglias_xorshift() -> None:
    # 2463534242 is the seed of Marsaglia's paper (2003), whose generator first gives 723471715
    assert xorshift_fill(2463534242, 1) == (723471715).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("words", "passes"),
    [([9, 9, 9, 9], 9), ([9, 9, 9, 9], 8), ([9, 8, 8, 8], 8), ([9, 9, 9, 8], 8)],
)
def test_untouched_memory_has_no_problem(tmp_path: Path, words: list[int], passes: int) -> None:
    assert problems(tmp_path, dump(SMALL, [3, 3, 3, 3]), dump(SMALL, words), passes) == []


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ([9, 8, 9, 8], 8),
        ([8, 9, 9, 9], 8),
        ([9, 9, 9, 7], 7),
        ([9, 9, 9, 9], 10),
        ([9, 9, 9, 9], 7),
        ([9, 9, 8, 8], 9),
        ([0, 0, 0, 0], 8),
    ],
)
def test_pages_of_another_pass_are_noticed(words: list[int], passes: int) -> None:
    assert pass_problems(words, passes) != []


@settings(max_examples=25)
@given(st.integers(min_value=0, max_value=SMALL.size_bytes - 1), st.integers(min_value=0, max_value=7))
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    after = dump(SMALL, [9, 9, 9, 9])
    after[at] ^= 1 << bit
    assert problems(tmp_path_factory.mktemp("dump"), dump(SMALL, [3, 3, 3, 3]), after, 9) != []


def test_memory_that_was_never_filled_is_noticed(tmp_path: Path) -> None:
    empty = bytearray(SMALL.size_bytes)
    assert problems(tmp_path, empty, empty, 0) == ["the first page was not filled as it should be"]


def test_a_short_dump_is_noticed(tmp_path: Path) -> None:
    whole = dump(SMALL, [9, 9, 9, 9])
    assert problems(tmp_path, whole, whole[:-1], 9) != []
