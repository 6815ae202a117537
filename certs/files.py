"""Files of keys and certificates: whole or absent after a crash, and private keys that only their owner can read."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs.errors import UNREADABLE, CredentialError, KeyFileError

MAX_KEY_BYTES = 64 * 1024
MAX_CERTIFICATES_BYTES = 1024 * 1024
MAX_CRL_BYTES = 16 * 1024 * 1024
_PKCS8 = b"-----BEGIN PRIVATE KEY-----"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
MIN_PASSPHRASE_BYTES = 12


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` with permissions `mode`: after a crash the old file or the new one, never a part."""
    temporary = _written_beside(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_private_key(path: Path, passphrase: bytes | None = None) -> PrivateKeyTypes:
    """The PKCS#8 PEM key in `path`, which must be a file of ours or root's that no other user can read.

    `passphrase`: of an encrypted key. One that is given for a key in the clear is refused: somebody believes it
    protected.

    What is checked is what was opened, so that nothing can be swapped in between; O_NONBLOCK, so that a pipe
    laid in its place is refused and not waited for. Raises `KeyFileError`.
    """
    data = read_private(path, MAX_KEY_BYTES)
    begins = _PKCS8 if passphrase is None else _ENCRYPTED
    if not data.lstrip().startswith(begins):
        wanted, remedy = (
            ("without a passphrase", "name the file of its passphrase, or convert it: openssl pkcs8 -topk8 -nocrypt")
            if passphrase is None
            else ("with a passphrase", "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc, or name no passphrase")
        )
        raise KeyFileError(path, f"is not a PKCS#8 PEM private key {wanted}", remedy)
    try:
        return load_pem_private_key(data, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        remedy = "issue a new key" if passphrase is None else "give its passphrase"
        raise KeyFileError(path, "holds a private key that cannot be read", remedy) from None


def read_passphrase(path: Path) -> bytes:
    """The one line of a file that only its owner can read (a systemd credential is one). Raises `KeyFileError`."""
    passphrase = read_private(path, 4096).removesuffix(b"\n")
    if len(passphrase) < MIN_PASSPHRASE_BYTES or b"\n" in passphrase:
        raise KeyFileError(
            path, f"is not one line of at least {MIN_PASSPHRASE_BYTES} characters", "write a long passphrase into it"
        )
    return passphrase


def read_private(path: Path, limit_bytes: int) -> bytes:
    """What is in a file that only its owner can read. Raises `KeyFileError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        problem, remedy = "cannot be opened (Permission denied)", f"run: chown {os.geteuid()} {path}, or see its folder"
        raise KeyFileError(path, problem, remedy) from None
    except OSError as error:
        raise KeyFileError(path, f"cannot be opened ({error.strerror})", "check the path") from None
    try:
        _require_private(path, os.fstat(descriptor))
        data = os.read(descriptor, limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit_bytes:
        raise KeyFileError(path, "is not a PKCS#8 PEM private key without a passphrase", "give the right file")
    return data


def write_private_key(path: Path, key: PrivateKeyTypes, passphrase: bytes | None = None) -> None:
    """Write PKCS#8 PEM, mode 0600 from the first byte. Never overwrites: a lost key is worse than a refusal."""
    sealing = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    temporary = _written_beside(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing), 0o600)
    try:
        path.hardlink_to(temporary)  # unlike rename, this fails if the name exists
    except FileExistsError:
        raise KeyFileError(path, "exists", "move the old key away first if it is no longer needed") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """All PEM certificates of a file, in its order; at least one. Raises `CredentialError`."""
    data = _read(path, MAX_CERTIFICATES_BYTES)
    try:
        found = tuple(x509.load_pem_x509_certificates(data))
        for each in found:
            _read_to_its_end(each)
            _ = each.subject
        return found
    except UNREADABLE:
        raise CredentialError(path, "holds no readable PEM certificate", "give a PEM file of certificates") from None


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """The one PEM CRL of a file. Two in one file are refused: the second would be dropped in silence."""
    data = _read(path, MAX_CRL_BYTES)
    if data.count(b"-----BEGIN X509 CRL-----") != 1:
        raise CredentialError(path, "does not hold exactly one PEM CRL", "put each CRL in a file of its own")
    try:
        crl = x509.load_pem_x509_crl(data)
        _read_to_its_end(crl)
        return crl
    except UNREADABLE:
        raise CredentialError(path, "holds a CRL that cannot be read", "fetch it again from its CA") from None


def read_crls(path: Path) -> tuple[x509.CertificateRevocationList, ...]:
    """The CRL of a file, or those of all `*.pem` of a folder, one in each. Raises `CredentialError`."""
    if not is_folder(path):
        return (read_crl(path),)
    found = tuple(map(read_crl, crl_files(path)))
    if not found:
        raise CredentialError(path, "is a folder without a CRL", "fetch the CRL of every CA into it")
    return found


def is_folder(path: Path) -> bool:
    """Not one that may not even be looked at: whoever reads it then, as a file, says what is in the way."""
    try:
        return path.is_dir()
    except OSError:
        return False


def crl_files(folder: Path) -> list[Path]:
    """Those that count, without what a crash left half written; none where there is no folder."""
    return [file for file in sorted(folder.glob("*.pem")) if not file.name.startswith(".")]


def sync_directory(directory: Path) -> None:
    """Make names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_to_its_end(found: x509.Certificate | x509.CertificateRevocationList) -> None:
    """`cryptography` reads names and extensions when they are asked for: a file must fail where it is named, and not
    where a program that runs looks at it first.
    """
    _ = found.issuer, found.extensions


def _written_beside(path: Path, data: bytes, mode: int) -> Path:
    """A durable temporary file in the folder of `path`; mkstemp makes it 0600 and never follows a link."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # which somebody named, and not the name that was made up
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(path, "is not a regular file", "give the path of a private key")
    if found.st_uid not in {os.geteuid(), 0}:
        raise KeyFileError(path, f"belongs to user {found.st_uid}", f"run: chown {os.geteuid()} {path}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise KeyFileError(path, f"is open to other users (mode {mode:04o})", f"run: chmod 600 {path}")


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise CredentialError(
            path, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from None
    if len(data) > limit_bytes:
        raise CredentialError(path, f"is larger than {limit_bytes} bytes", "give the right file")
    return data
