"""A folder of CRLs that is kept by what a gateway tells: one file for each CA, whose number only grows.

Whoever tells may be hostile: another site, or a thief of our own gateway's key, who can withhold and deny. He undoes no
revocation, makes nobody take what a CA that is known here has not signed, and fills neither disk nor memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from certs.crls import crl_number_of, is_forged, is_issued_by_one
from certs.errors import UNREADABLE, CredentialError
from certs.files import MAX_CRL_BYTES, crl_files, read_crl, sync_directory, write_atomically
from certs.introduction import authority_key_id
from certs.verification import Trust

MAX_CRLS: Final = 16  # that are told at once, and that are in force in one folder
MAX_KNOWN: Final = 64  # with those whose CA was retired
MAX_FOREIGN_BYTES: Final = 1024 * 1024  # in force of another site: some 25,000 revocations
FORMER: Final = "former"  # folder of CRLs whose CA was retired: their numbers are remembered
_REMEDY: Final = "look at the gateway's tls.crls"


def keep_crls(
    folder: Path, texts: list[str], authorities: Sequence[x509.Certificate], most_bytes: int | None = None
) -> int:
    """Put newer CRLs into a folder; how many were newer. Raises `CredentialError`.

    `most_bytes`: of all in force together, of another site. They are read at each connection of our own hosts, too.

    A lower number than the one held never replaces it: whoever speaks for the gateway cannot undo a revocation. Nor
    does what one of `authorities` ought to have signed and has not: its number could be higher than any that comes.
    """
    if len(texts) > MAX_CRLS:
        raise CredentialError(None, f"more than {MAX_CRLS} CRLs", _REMEDY)
    taken = 0
    for text in texts:
        crl, number, name = _numbered(text)
        if is_forged(crl, authorities):
            raise CredentialError(None, "a CRL that its CA has not signed", _REMEDY)
        file = folder / name
        former = folder / FORMER / name  # let go of once: not even then does it come back with a lower number
        held = [read_crl(each) for each in (file, former) if each.exists()]
        if any((crl_number_of(each) or 0) >= number and not is_forged(each, authorities) for each in held):
            continue
        if not file.exists() and not is_issued_by_one(crl, authorities):
            _require_room(folder, is_new=not held)
        pem = crl.public_bytes(Encoding.PEM)
        if most_bytes is not None:
            _require_short(folder, name, len(pem), most_bytes)
        write_atomically(file, pem)
        taken += 1
    return taken


def put_away(files: Sequence[Path]) -> None:
    """Of CAs that are retired."""
    for file in files:
        former = file.parent / FORMER
        former.mkdir(mode=0o700, exist_ok=True)
        file.rename(former / file.name)
        sync_directory(former)
        sync_directory(file.parent)


def _require_room(folder: Path, *, is_new: bool) -> None:
    """CAs that nobody here knows may be told of without end. None gives way to another: its number would be lost."""
    in_force, retired = len(crl_files(folder)), len(crl_files(folder / FORMER))
    if in_force >= MAX_CRLS or (is_new and in_force + retired >= MAX_KNOWN):
        problem = f"holds CRLs of {in_force} CAs and of {retired} retired ones, and takes none of another"
        raise CredentialError(folder, problem, "remove those of CAs that are not yours")


def _require_short(folder: Path, name: str, size_bytes: int, most_bytes: int) -> None:
    others = sum(file.stat().st_size for file in crl_files(folder) if file.name != name)
    if others + size_bytes > most_bytes:
        raise CredentialError(folder, f"would hold CRLs longer than {most_bytes} bytes", "ask that site why")


def _numbered(text: str) -> tuple[x509.CertificateRevocationList, int, str]:
    """With its number and its file's name: cryptography reads both only when they are asked for. Nor is one taken that
    is too long, or that only OpenSSL cannot read: with it in the folder, this program would not start again.
    """
    try:
        crl = x509.load_pem_x509_crl(text.encode())
        Trust((), (crl,)).fill(crypto.X509Store())
        number, name = crl_number_of(crl), _file_name(crl)
        is_too_long = len(crl.public_bytes(Encoding.PEM)) > MAX_CRL_BYTES
    except UNREADABLE:
        raise CredentialError(None, "a CRL that cannot be read", _REMEDY) from None
    if number is None or is_too_long:
        raise CredentialError(None, "a CRL that is too long" if is_too_long else "a CRL without a number", _REMEDY)
    return crl, number, name


def _file_name(crl: x509.CertificateRevocationList) -> str:
    """Of its issuer and that issuer's key: two CAs of one name do not overwrite each other."""
    key_id = authority_key_id(crl) or b""
    return hashlib.sha256(crl.issuer.public_bytes() + b"\0" + key_id).hexdigest()[:32] + ".pem"
