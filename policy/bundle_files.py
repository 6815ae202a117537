"""The files of a policy bundle as bytes, and their digest.

```
bundle.toml   schema.cedarschema   policies/NAME.cedar   tests/NAME.yaml        nothing else
```
All files are opened below one directory descriptor and never through a symlink, so that replacing the directory
meanwhile cannot mix two versions, and a bundle cannot point at a file outside of it. Errors: BundleRefused.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from policy.errors import BundleRefused

MAX_BYTES: Final = 10 * 1024 * 1024  # of all files together
MAX_FILES: Final = 2_000
MANIFEST: Final = "bundle.toml"
SCHEMA: Final = "schema.cedarschema"
POLICIES: Final = "policies"
TESTS: Final = "tests"
_FOLDERS: Final = {POLICIES: ".cedar", TESTS: ".yaml"}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_bundle_files(directory: Path) -> dict[str, str]:
    """Every file of the bundle as text, by its path inside ("policies/production.cedar"), sorted by path."""
    budget = _Budget()
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleRefused("", f"{directory}: {error.strerror}: name an existing directory") from error
    try:
        files = _read_folder(root, "", budget)
        for folder in _FOLDERS:
            files |= _read_subfolder(root, folder, budget)
    except OSError as error:
        raise BundleRefused("", f"{directory}: {error.strerror}: make it readable to the gateway") from error
    finally:
        os.close(root)
    for required in (MANIFEST, SCHEMA):
        if required not in files:
            raise BundleRefused(required, "is missing")
    return {path: _text(path, files[path]) for path in sorted(files)}


def require_bundle_files(files: Mapping[str, str]) -> None:
    """The same rules for files that came by another way than a directory."""
    if len(files) > MAX_FILES:
        raise BundleRefused("", f"has more than {MAX_FILES} files")
    if sum(len(text.encode()) for text in files.values()) > MAX_BYTES:
        raise BundleRefused("", f"is above {MAX_BYTES // 1024 // 1024} MiB")
    for path in files:
        folder, _, name = path.rpartition("/")
        if (folder and folder not in _FOLDERS) or not _belongs(folder, name):
            raise BundleRefused(ascii(path)[1:-1], "does not belong in a bundle: remove it")
    for required in (MANIFEST, SCHEMA):
        if required not in files:
            raise BundleRefused(required, "is missing")


def files_below(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    """Of a bundle's files those in a folder of it."""
    return {path: text for path, text in files.items() if path.startswith(f"{folder}/")}


def bundle_digest(files: Mapping[str, str]) -> str:
    """SHA-256 in hex over the sorted files, each as u32 length ‖ path ‖ u64 length ‖ content (big-endian, UTF-8).

    The lengths keep bytes from moving between a name and a content, or between two files, unseen.
    """
    digest = hashlib.sha256(b"sealane bundle v1\n")
    for path in sorted(files):
        name, content = path.encode(), files[path].encode()
        digest.update(len(name).to_bytes(4) + name + len(content).to_bytes(8) + content)
    return digest.hexdigest()


class _Budget:
    """What may still be read of the bundle."""

    def __init__(self) -> None:
        self.bytes = MAX_BYTES
        self.files = MAX_FILES


def _read_subfolder(root: int, folder: str, budget: _Budget) -> dict[str, bytes]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    except FileNotFoundError:
        return {}
    except NotADirectoryError as error:
        raise BundleRefused(folder, "is not a directory, or is a symlink: put the files themselves there") from error
    try:
        return _read_folder(descriptor, folder, budget)
    finally:
        os.close(descriptor)


def _read_folder(descriptor: int, folder: str, budget: _Budget) -> dict[str, bytes]:
    files = {}
    for name in os.listdir(descriptor):
        path = f"{folder}/{name}" if folder else name
        if not folder and name in _FOLDERS:
            continue
        if not _belongs(folder, name):
            raise BundleRefused(ascii(path)[1:-1], "does not belong in a bundle: remove it")
        budget.files -= 1
        if budget.files < 0:
            raise BundleRefused("", f"has more than {MAX_FILES} files")
        files[path] = _read_file(descriptor, name, path, budget)
    return files


def _belongs(folder: str, name: str) -> bool:
    if not folder:
        return name in {MANIFEST, SCHEMA}
    return _NAME.fullmatch(name) is not None and name.endswith(_FOLDERS[folder])


def _read_file(directory: int, name: str, path: str, budget: _Budget) -> bytes:
    # O_NONBLOCK: a FIFO in the bundle must not hang the gateway until somebody writes.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise BundleRefused(path, "cannot be read, or is a symlink: put the file itself there") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleRefused(path, "is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(budget.bytes + 1)
    finally:
        os.close(descriptor)
    budget.bytes -= len(content)
    if budget.bytes < 0:
        raise BundleRefused(path, f"brings the bundle above {MAX_BYTES // 1024 // 1024} MiB")
    return content


def _text(path: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleRefused(path, f"is not UTF-8 at byte {error.start}") from error
