from __future__ import annotations

import httpx
import pytest

from gateway.network_words import words_of_failure


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused"),
        (httpx.ConnectError("[Errno -2] Name or service not known"), "Name or service not known"),
        (httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"), "The handshake operation timed out"),
        (
            httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            "what listens there speaks no TLS 1.3 (wrong version number)",
        ),
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: expired (_ssl.c:1006)"),
            "certificate verify failed: expired",
        ),
        (httpx.ReadError(""), "ReadError"),
    ],
)
def test_no_number_and_no_file_of_c_is_left(error: Exception, words: str) -> None:
    assert words_of_failure(error) == words
