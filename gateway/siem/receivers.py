"""From a table and its secret files to a sink: the one place that knows which kinds there are."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from elasticsearch import Elasticsearch

from audit.siem.elastic import ElasticSink
from audit.siem.elastic_http import BoundedNode
from audit.siem.sink import Sink
from certs.errors import CertificateError
from certs.files import read_private_key
from gateway.siem.line_receivers import make_line_sink
from gateway.siem.line_tables import FileTable, RelpTable, SplunkTable, SyslogTable, WebhookTable
from gateway.siem.tables import AnySinkTable, ElasticsearchTable
from policy.secret_files import read_secret_line

PathOf = Callable[[str], Path]


def make_sink(table: AnySinkTable, path_of: PathOf, origin: str) -> Sink:
    """A sink that has not connected yet, for the log `origin`. `path_of` makes a name of the configuration absolute.

    Raises ValueError or OSError, naming the file, never with what is in it.
    """
    match table:
        case ElasticsearchTable():
            return _elasticsearch(table, path_of)
        case FileTable() | RelpTable() | SplunkTable() | SyslogTable() | WebhookTable():
            return make_line_sink(table, path_of, origin)
        case _:
            assert_never(table)


def _elasticsearch(table: ElasticsearchTable, path_of: PathOf) -> ElasticSink:
    context = client_context(table.trust_bundle, table.certificate, table.private_key, path_of)
    client = Elasticsearch(
        table.url,
        api_key=secret(path_of(table.api_key_file)) if table.api_key_file else None,
        ssl_context=context,
        # Before the batch's own deadline, so that no thread outlives its task by much. Retrying is the shipper's.
        request_timeout=max(1.0, table.deadline_seconds * 0.9),
        node_class=BoundedNode,
        max_retries=0,
        retry_on_timeout=False,
    )
    return ElasticSink(table.name, client, table.indices, table.lifecycle)


def secret(path: Path) -> str:
    """The one line of a secret file. Raises ValueError, naming the file and never its content."""
    try:
        return read_secret_line(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def client_context(
    trust_bundle: str | None, certificate: str | None, private_key: str | None, path_of: PathOf
) -> ssl.SSLContext:
    """TLS 1.2 or later with a verified certificate and name. Raises ValueError, naming the file."""
    bundle = None if trust_bundle is None else path_of(trust_bundle)
    try:
        context = ssl.create_default_context(cafile=None if bundle is None else str(bundle))
    except OSError as error:  # ssl.SSLError is one: a file without a certificate
        raise ValueError(f"{bundle}: holds no certificates that can be read ({error.strerror or error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and private_key is not None:
        try:
            read_private_key(path_of(private_key))  # by our own rule first: `ssl` takes a key that everybody can read
            context.load_cert_chain(path_of(certificate), path_of(private_key))
        except CertificateError as error:
            raise ValueError(str(error)) from None
        except OSError as error:
            raise ValueError(f"{path_of(certificate)}: does not fit its key ({error.strerror or error})") from None
    return context
