"""Why a connection failed, without the numbers of errno and the names of C files, which tell a person nothing."""

from __future__ import annotations

import re

# What OpenSSL calls bytes that are no TLS, or none that we speak.
_NO_TLS = re.compile(r"^\[SSL: (WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER_FAILURE|UNSUPPORTED_PROTOCOL)\] ")
_NOISE = re.compile(r"^\[Errno -?[0-9]+\] |^\[SSL[^]]*\] |\s*\(_ssl\.c:[0-9]+\)$|^_ssl\.c:[0-9]+: ")


def words_of_failure(error: BaseException) -> str:
    """Of an OSError, or of a library's error around one."""
    text = _NOISE.sub("", str(error)) or type(error).__name__
    return f"what listens there speaks no TLS 1.3 ({text})" if _NO_TLS.match(str(error)) else text
