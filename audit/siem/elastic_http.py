"""The official client's HTTP, bounded: an answer has a size, a request has one deadline, and nothing is unpacked.

The client's own node reads whatever a server sends, unpacks it, and counts its time-out anew with each piece that
comes: a server that is broken into could fill the gateway's memory by ten gigabytes, by a small bomb, or byte by byte
hold a thread for ever.
"""

from __future__ import annotations

import time
from typing import Any, Final

import urllib3
from elastic_transport import (
    ApiResponseMeta,
    ConnectionError,  # noqa: A004 - the client's own
    ConnectionTimeout,
    HttpHeaders,
    NodeConfig,
    TlsError,
    Urllib3HttpNode,
)
from elastic_transport._node import NodeApiResponse  # nothing public has the type that a node must answer with
from elastic_transport.client_utils import DEFAULT, DefaultType

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_CHUNK: Final = 65_536


class AnswerTooLarge(ConnectionError):
    """Fewer documents may fit."""


class BoundedNode(Urllib3HttpNode):
    """For `Elasticsearch(node_class=…)`. Errors are the client's own; redirects are answers like any other."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._seconds = config.request_timeout or 30.0

    def perform_request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: HttpHeaders | None = None,
        request_timeout: DefaultType | float | None = DEFAULT,
    ) -> NodeApiResponse:
        """See the client's. `request_timeout` is for the whole of it, from connecting to the last byte."""
        seconds = self._seconds if isinstance(request_timeout, DefaultType) else (request_timeout or self._seconds)
        started = time.monotonic()
        sent = self._headers.copy()
        sent.update(headers or {})
        sent["accept-encoding"] = "identity"
        try:
            response = self.pool.urlopen(
                method,
                f"{self.path_prefix}{target}",
                body=body or None,
                retries=False,
                redirect=False,
                headers=sent,
                timeout=seconds,
                preload_content=False,
                decode_content=False,
            )
            try:
                data = _read(response, started + seconds)
            except BaseException:
                response.close()  # whatever else is in there is of no use to the next request
                raise
            response.release_conn()
        except (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.ReadTimeoutError) as error:
            raise ConnectionTimeout("timed out", errors=(error,)) from error
        except urllib3.exceptions.SSLError as error:
            raise TlsError(str(error), errors=(error,)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ConnectionError(str(error), errors=(error,)) from error
        meta = ApiResponseMeta(
            node=self.config,
            duration=time.monotonic() - started,
            http_version="1.1",
            status=response.status,
            headers=HttpHeaders(response.headers),
        )
        return NodeApiResponse(meta, data)


def _read(response: Any, deadline: float) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ConnectionError("its answer is packed, which was not asked for")
    data = bytearray()
    while piece := response.read1(_CHUNK, decode_content=False):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(f"its answer is over {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise ConnectionTimeout("timed out in the midst of its answer")
    return bytes(data)
