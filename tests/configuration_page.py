"""docs/configuration.md: every key of the three configuration files, made from the types that decode them.

    python -m tests.configuration_page --write

The words of what is allowed are those of the errors. A test compares the page with what this makes.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET, inspect

from gateway.cli.settings import ClientFile
from gateway.config import GatewayConfig
from gateway.witness_config import WitnessFile
from policy.settings.allowed import allowed, alternatives, keys_of, unit_of
from transport.relay.config import RelayConfig

PAGE: Final = Path(__file__).parents[1] / "docs" / "configuration.md"
FILES: Final = (
    ("A relay: relay.toml", RelayConfig, "[relay.md](relay.md), [libvirt.md](libvirt.md), [install.md](install.md)"),
    (
        "A gateway: gateway.toml",
        GatewayConfig,
        "[install.md](install.md), [identity.md](identity.md), [siem.md](siem.md)",
    ),
    ("A witness: witness.toml", WitnessFile, "[witness.md](witness.md)"),
    ("Whoever asks: ~/.config/sealane/client.toml", ClientFile, "[identity.md](identity.md)"),
)
HEAD: Final = """\
# Every key of the configuration files

Made by `python -m tests.configuration_page --write` from the types that decode the files, and compared with them by a
test. Files are TOML and read strictly: a key that is not here, or a value that is not allowed, is refused at the start,
in one line that names file, key, what stands there and what may. Names of files are relative to the folder of the file
in which they stand. What a key is for stands in the pages that each part names. `sealane doctor` reads the same files
without starting anything.
"""


def page() -> str:
    return "\n".join([HEAD, *(line for title, shape, more in FILES for line in _file(title, shape, more))])


def _file(title: str, shape: type, more: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"Read on: {more}.\n"
    root = inspect.type_info(shape)
    assert isinstance(root, inspect.StructType)
    own = {key: field for key, field in keys_of(root).items() if not _tables(field.type)}
    if own:
        yield _table(own)
    for key, field in keys_of(root).items():
        yield from _sections(key, field)


def _sections(path: str, field: inspect.Field) -> Iterator[str]:
    """The tables at `path`, and those within them."""
    for table in _tables(field.type):
        keys = keys_of(table)
        mark = f'[[{path}]], kind = "{table.tag}"' if table.tag_field else _heading(path, field.type)
        yield f"### `{mark}`{'' if field.required or _many(field.type) else ', optional'}\n"
        if table.cls.__doc__:
            yield f"{_intro(table.cls)}\n"
        if own := {key: each for key, each in keys.items() if not _tables(each.type)}:
            yield _table(own)
        for key, each in keys.items():
            yield from _sections(f"{path}.{key}", each)


def _heading(path: str, kind: inspect.Type) -> str:
    if any(isinstance(_bare(each), inspect.DictType) for each in alternatives(kind)):
        return f"[{path}.NAME]"
    return f"[[{path}]]" if _many(kind) else f"[{path}]"


def _many(kind: inspect.Type) -> bool:
    lists = (inspect.VarTupleType, inspect.ListType, inspect.DictType)
    return any(isinstance(_bare(each), lists) for each in alternatives(kind))


def _tables(kind: inspect.Type) -> list[inspect.StructType]:
    found = []
    for each in map(_bare, alternatives(kind)):
        match each:
            case inspect.StructType():
                found.append(each)
            case inspect.VarTupleType() | inspect.ListType():
                found += _tables(each.item_type)
            case inspect.DictType():
                found += _tables(each.value_type)
    return found


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _intro(shape: type) -> str:
    first, _, rest = (shape.__doc__ or "").partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


def _table(keys: dict[str, inspect.Field]) -> str:
    rows = ["| key | unit | default | allowed |", "|---|---|---|---|"]
    for key, field in keys.items():
        may = allowed(field.type).replace("|", "\\|")
        rows.append(f"| `{key}` | {unit_of(key)} | {_default(field)} | {may} |")
    return "\n".join(rows) + "\n"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "must be given"
    value: Any = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None
    if value is None or value is UNSET:
        return "none"
    value = msgspec.to_builtins(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return (
        f"`{msgspec.json.encode(value).decode()}`"
        if isinstance(value, (str, tuple, list, dict))
        else str(value).lower()
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
