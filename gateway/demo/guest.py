"""The demo's guest: its boot image, and the two questions whether it survived a move unharmed.

    physical memory   0          start                     hot                       end
                      │ code,    │ xorshift32 fill,        │ the same fill, but the  │ nothing
                      │ stack    │ never written again     │ first word of each page │
                      │          │                         │ is the number of a pass │

In pass n the guest first writes n into every hot page, from `hot` up, and then prints n. So at any moment the
first hot pages hold n + 1 and the rest n, with one transition, and n fits what was printed.
"""

import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.demo.errors import MissingProgram, ProcessFailed

PAGE_BYTES = 4096
FLOPPY_BYTES = 1_474_560
READY = b"ready\n"
_MIB = 1 << 20
_PARAMETERS_AT = 0x40
_PARAMETERS = struct.Struct("<5I")  # start, end, hot, seed, ticks: see guest.S
_WORD = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class GuestLayout:
    """Where the guest's region is (byte addresses, whole pages), its seed, and 10 ms ticks of sleep a pass."""

    start: int
    hot: int
    end: int
    seed: int = 0x5EA1A4E5
    ticks: int = 1

    def __post_init__(self) -> None:
        if not _MIB <= self.start < self.hot < self.end < 1 << 31 or not 0 < self.seed < 1 << 32:
            raise ValueError(f"impossible guest layout: {self}")
        if any(address % PAGE_BYTES for address in (self.start, self.hot, self.end)):
            raise ValueError(f"guest layout is not of whole pages: {self}")

    @classmethod
    def for_memory(cls, memory_mib: int, hot_mib: int) -> "GuestLayout":
        """Nearly all of a guest's memory, of which the upper `hot_mib` are written all the time."""
        end = (memory_mib - 4) * _MIB  # the firmware keeps tables at the end of memory
        return cls(start=_MIB, hot=end - hot_mib * _MIB, end=end)

    @property
    def size_bytes(self) -> int:
        """Size of the region."""
        return self.end - self.start


def build_boot_image(layout: GuestLayout, directory: Path) -> Path:
    """Assemble the guest into a floppy image in `directory`. MissingProgram, ProcessFailed (assembler)."""
    for program in ("as", "ld"):
        if shutil.which(program) is None:
            raise MissingProgram(program, "binutils")
    source = Path(__file__).with_name("guest.S")
    object_file, binary, image = (directory / name for name in ("guest.o", "guest.bin", "guest.img"))
    _run("as", "--32", str(source), "-o", str(object_file))
    linking = ("-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary")
    _run("ld", *linking, "-o", str(binary), str(object_file))
    sector = bytearray(binary.read_bytes())
    _PARAMETERS.pack_into(sector, _PARAMETERS_AT, layout.start, layout.end, layout.hot, layout.seed, layout.ticks)
    image.write_bytes(sector.ljust(FLOPPY_BYTES, b"\0"))
    return image


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise ProcessFailed(command[0], f"exit code {done.returncode}", done.stderr)


def count_passes(serial: bytes) -> int:
    """The number that the guest has counted to, by all that it printed, on one host after the other.

    Raises ValueError at the first number that is not the next one: a gap, a repetition, or rubbish. A line
    that is still being printed must be the beginning of the next number.
    """
    if not serial.startswith(READY):
        if READY.startswith(serial):
            return 0
        raise ValueError(f"the guest did not begin with {READY!r} but with {serial[: len(READY)]!r}")
    *lines, unfinished = serial[len(READY) :].split(b"\n")
    for expected, line in enumerate(lines, start=1):
        if line != b"%d" % expected:
            raise ValueError(f"the guest printed {line!r} where {expected} was next")
    if not (b"%d" % (len(lines) + 1)).startswith(unfinished):
        raise ValueError(f"the guest prints {unfinished!r} where {len(lines) + 1} is next")
    return len(lines)


def xorshift_fill(seed: int, words: int) -> bytes:
    """The first `words` 32-bit words of the guest's fill (Marsaglia's xorshift32, little-endian)."""
    state, filled = seed, bytearray()
    for _ in range(words):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        filled += _WORD.pack(state)
    return bytes(filled)


def memory_problems(before: Path, after: Path, layout: GuestLayout, passes: int) -> list[str]:
    """What is wrong with the guest's memory after a move: nothing, or what a reader needs to see it.

    `before` and `after` are dumps of the region [start, end), taken while the guest was stopped; `passes` is what
    it had printed by the second dump. Compared byte for byte, but for the first word of each hot page.
    """
    with _mapped(before) as old, _mapped(after) as new:
        if len(old) != layout.size_bytes or len(new) != layout.size_bytes:
            return [f"dumps of {len(old)} and {len(new)} bytes instead of {layout.size_bytes}"]
        known = xorshift_fill(layout.seed, PAGE_BYTES // _WORD.size)
        problems = [] if old[:PAGE_BYTES] == known else ["the first page was not filled as it should be"]
        written: list[int] = []
        for at in range(0, layout.size_bytes, PAGE_BYTES):
            hot = layout.start + at >= layout.hot
            skipped = _WORD.size if hot else 0
            if old[at + skipped : at + PAGE_BYTES] != new[at + skipped : at + PAGE_BYTES]:
                problems.append(f"page at {layout.start + at:#x} changed")
            if hot:
                written += _WORD.unpack_from(new, at)
    return problems + pass_problems(written, passes)


def pass_problems(written: list[int], passes: int) -> list[str]:
    """What is wrong with the pass numbers in the hot pages, in order of address, given what was printed."""
    first, last = written[0], written[-1]
    turn = next((index for index, number in enumerate(written) if number != first), len(written))
    if any(number != last for number in written[turn:]) or first - last not in (0, 1):
        return [f"hot pages hold {sorted(set(written))[:8]} with more than one transition"]
    # All pages alike: pass `last` is being printed, or was. Otherwise: the next one is on its way.
    if passes == last or (first == last and passes == last - 1):
        return []
    return [f"the guest printed {passes}, but its memory says {last}"]


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        yield whole
