"""A real Elasticsearch as a process on loopback: HTTPS, file users, API keys. Made of its Maven Central artifacts.

`deploy/setup.sh test` fetches them (pom.xml). What the distribution has beside them, and this has not: data streams,
Kibana, and of index lifecycle all but the reading of a policy and the setting that names one (docs/adr/).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from elasticsearch import ApiError, Elasticsearch, TransportError

from audit.siem.elastic_http import BoundedNode
from certs.authority import Authority
from certs.files import write_private_key

HERE = Path(__file__).parent
VERSION: Final = "8.19.0"
USER: Final = "tester"
START_SECONDS: Final = 240.0  # it is there after 4 to 8; a machine with ten times the work that it can do takes longer
_PORTS: Final = range(20_000, 30_000)
_QUICK: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # a quick start matters more to tests than speed
_NETTY: Final = ("netty-", "transport-netty4-")
# Module → its class, the module that it extends, how the names of its own jars begin. Other jars are the server's.
_MODULES: Final = {
    "transport-netty4": ("org.elasticsearch.transport.netty4.Netty4Plugin", "", _NETTY),
    "x-pack-core": (
        "org.elasticsearch.xpack.core.XPackPlugin",
        "",
        ("x-pack-core-", "x-pack-template-resources-", "unboundid-", "http", "commons-"),
    ),
    "x-pack-security": (
        "org.elasticsearch.xpack.security.Security",
        "x-pack-core",
        (
            *_NETTY,
            *(
                "x-pack-security-",
                "accessors-smart-",
                "asm-",
                "content-type-",
                "cryptacular-",
                "failureaccess-",
                "guava-",
            ),
            *("jakarta.mail-", "jcip-", "joda-", "json-smart-", "jsr305-", "lang-tag-", "metrics-core-", "nimbus-"),
            *("oauth2-", "opensaml-", "slf4j-", "xmlsec-"),
        ),
    ),
}


class ElasticsearchNode:
    """One node with its data in `folder`. `ca`: the PEM file that its certificate is verified with."""

    def __init__(
        self,
        folder: Path,
        heap: str = "512m",
        options: Sequence[str] = _QUICK,
        largest_request: str = "2mb",
        disk: str = "cluster.routing.allocation.disk.threshold_enabled: false",
    ) -> None:
        self._folder = folder
        self._heap = heap
        self._largest_request = largest_request
        self._disk = disk
        self._options = tuple(options)
        self.port, self._transport_port = _free_ports(2)
        self.url = f"https://localhost:{self.port}"
        self.ca = folder / "ca.pem"
        self.password = secrets.token_hex(12)
        self.process: subprocess.Popen[bytes] | None = None
        _lay_modules(folder / "modules")
        self.renew_certificate(["localhost"])
        self._write_configuration()

    def __enter__(self) -> ElasticsearchNode:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, or start it again on its data, and wait until it answers."""
        command = ["java", "-Xms256m", f"-Xmx{self._heap}", *self._options]
        command += ["-cp", f"{self._folder / 'server'}/*", "Node", str(self._folder)]
        with (self._folder / "output.log").open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        end = time.monotonic() + START_SECONDS
        with self.client() as client:
            while not _answers(client):
                assert self.process.poll() is None, f"Elasticsearch ended: {self._output()}"
                assert time.monotonic() < end, f"Elasticsearch does not answer: {_state(client)} {self._output()}"
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a host that loses power: what it acknowledged must be there after the next start."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            assert self.process.stdin is not None
            self.process.stdin.close()

    def pause(self) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def client(self) -> Elasticsearch:
        """A client as the administrator."""
        return Elasticsearch(self.url, basic_auth=(USER, self.password), ca_certs=str(self.ca), request_timeout=20)

    def keyed_client(self, key: str, url: str | None = None, seconds: float = 10) -> Elasticsearch:
        """A client with an API key, as a sink has one."""
        return Elasticsearch(
            url or self.url,
            api_key=key,
            ca_certs=str(self.ca),
            request_timeout=seconds,
            max_retries=0,
            node_class=BoundedNode,
        )

    def make_api_key(self, name: str, indices: str) -> tuple[str, str]:
        """An API key that may write to `indices` and read them: (id, encoded)."""
        privileges = ["create_doc", "create_index", "auto_configure", "read", "view_index_metadata", "maintenance"]
        role = {
            "cluster": ["monitor", "manage_index_templates"],
            "index": [{"names": [indices], "privileges": privileges}],
        }
        with self.client() as client:
            made = client.security.create_api_key(name=name, role_descriptors={"shipper": role}, refresh="wait_for")
        return str(made["id"]), str(made["encoded"])

    def renew_certificate(self, names: list[str], lifetime: timedelta = timedelta(hours=1)) -> None:
        """Another certificate for other names, under the same CA; the node takes it at its next start."""
        now = datetime.now(UTC)
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        if not self.ca.exists():
            (folder / "ca").mkdir()
            Authority.create(folder / "ca", "siem.test", now)
        authority = Authority.load(folder / "ca")
        self.ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue_gateway("node", key.public_key(), names, [], now, lifetime)
        config = folder / "config"
        config.mkdir(exist_ok=True)
        (config / "http.key").unlink(missing_ok=True)
        write_private_key(config / "http.key", key)
        (config / "http.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))

    def _write_configuration(self) -> None:
        config = self._folder / "config"
        (config / "elasticsearch.yml").write_text(
            f"http.port: {self.port}\ntransport.port: {self._transport_port}\nnetwork.host: 127.0.0.1\n"
            f"path.data: {self._folder / 'data'}\ndiscovery.type: single-node\n"
            f"cluster.name: sealane-test\nnode.name: only\nhttp.max_content_length: {self._largest_request}\n"
            f"{self._disk}\nlogger.level: warn\n"
            "xpack.security.enabled: true\nxpack.security.http.ssl.enabled: true\n"
            "xpack.security.http.ssl.key: http.key\nxpack.security.http.ssl.certificate: http.pem\n",
            encoding="utf-8",
        )
        salt = os.urandom(32)
        hashed = hashlib.pbkdf2_hmac("sha512", self.password.encode(), salt, 10_000, 32)
        stored = f"{{PBKDF2}}10000${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}"
        (config / "users").write_text(f"{USER}:{stored}\n", encoding="utf-8")
        (config / "users_roles").write_text(f"superuser:{USER}\n", encoding="utf-8")
        for name in ("roles.yml", "role_mapping.yml"):
            (config / name).touch()

    def _output(self) -> str:
        return (self._folder / "output.log").read_text(errors="replace")[-3000:]


def read_lifecycle_policy(file: Path) -> str:
    """What the server's own classes make of the body of a PUT _ilm/policy. CalledProcessError: they refuse it."""
    command = ["java", "-cp", f"{HERE / 'target/classes'}:{HERE / 'target/lib'}/*", "Lifecycle", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_SECONDS).stdout


logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)  # hundreds of lines while a node starts


def _answers(client: Elasticsearch) -> bool:
    try:
        client.options(request_timeout=5).cluster.health(wait_for_status="yellow")
    except (TransportError, ApiError):
        return False
    return True


def _state(client: Elasticsearch) -> str:
    """Why it does not answer, by its own account."""
    try:
        health = client.cluster.health(timeout="1s").body
        return f"{health} {client.cluster.allocation_explain().body if health['unassigned_shards'] else ''}"[:5000]
    except (TransportError, ApiError) as error:
        return str(error)[:1000]


def _lay_modules(modules: Path) -> None:
    """The folders of the distribution, with links to the jars."""
    jars = sorted((HERE / "target/lib").glob("*.jar"))
    assert jars, "run deploy/setup.sh test"
    server = modules.parent / "server"
    server.mkdir(parents=True, exist_ok=True)
    taken = tuple(prefix for _, _, prefixes in _MODULES.values() for prefix in prefixes)
    for each in jars:
        if not each.name.startswith(taken):
            _link(each, server)
    for main_class, extends in (("Analysis", ""), ("Lifecycle", "x-pack-core")):  # our own
        folder = modules / main_class.lower()
        folder.mkdir(parents=True, exist_ok=True)
        _describe(folder, main_class, extends)
        _pack(main_class, folder / f"{folder.name}.jar")
    _pack("Node", server / "node.jar")
    for name, (main_class, extends, prefixes) in _MODULES.items():
        folder = modules / name
        folder.mkdir(parents=True, exist_ok=True)
        _describe(folder, main_class, extends)
        for each in jars:
            if each.name.startswith(prefixes):
                _link(each, folder)


def _pack(name: str, jar: Path) -> None:
    """A jar of the classes of one of our sources: two places with the same class are refused as jar hell."""
    with zipfile.ZipFile(jar, "w") as packed:
        for compiled in sorted((HERE / "target/classes").glob(f"{name}*.class")):
            packed.write(compiled, compiled.name)


def _describe(module: Path, main_class: str, extends: str) -> None:
    (module / "plugin-descriptor.properties").write_text(
        f"name={module.name}\ndescription={module.name}\nversion={VERSION}\nelasticsearch.version={VERSION}\n"
        f"java.version=17\nclassname={main_class}\nextended.plugins={extends}\nhas.native.controller=false\n",
        encoding="utf-8",
    )


def _link(jar: Path, folder: Path) -> None:
    target = folder / jar.name
    if not target.exists():
        target.symlink_to(jar)


def _free_ports(count: int) -> list[int]:
    """Outside the range that connections take theirs from: one of those would hold it while the node is down."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
