"""An S3 server that a test may kill and start again, and a proxy in front of it that injects faults into requests."""

import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

KEYS = {"lab": "lab-secret", "renewed": "renewed-secret"}  # two of the same rights: the second renews the first
BUCKET = "archive"
ERRORS = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied", "400": "ExpiredToken"}
_SERVERS = ("master", "volume", "filer", "s3")


class Store:
    """SeaweedFS over a folder; it checks signatures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for key, secret in KEYS.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(2 * len(_SERVERS))]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        names = [f"{server}.port{kind}" for server in _SERVERS for kind in ("", ".grpc")]
        self._ports = dict(zip(names, ports, strict=True))
        self.port = self._ports["s3.port"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it takes objects."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Start it; it takes seconds until it takes objects."""
        command = [str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-dir={self._folder}"]
        command += [f"-s3.config={self._folder / 's3.json'}", "-ip=127.0.0.1", "-master.telemetry=false"]
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=256"]
        command += ["-master.electionTimeout=1s"]  # with its 10 s, one that is started again waits for 20
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self) -> None:
        """Until it takes objects."""
        assert self._process
        client = plain_client(f"http://127.0.0.1:{self.port}")
        for _ in range(300):
            try:
                if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="probe", Body=b"probe")
                client.delete_object(Bucket=BUCKET, Key="probe")
                return
            except Exception as error:  # botocore has many for a server that is not there yet
                last = error
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        raise RuntimeError(f"SeaweedFS is not ready ({last}): see {self._folder / 'log'}")


def plain_client(endpoint: str) -> Any:
    """A client that does not try again, with credentials of its own."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    keys = {"aws_access_key_id": "lab", "aws_secret_access_key": KEYS["lab"], "region_name": "us-east-1"}
    return boto3.session.Session(**keys).client("s3", endpoint_url=endpoint, config=config)


@dataclass
class Rule:
    """What to do with requests whose line (`METHOD PATH?QUERY`, unquoted) matches a pattern, `times` times.

    Kinds: a key of ERRORS is answered in the store's stead; `reset` closes the connection before the request is
    passed on, `lost` after it, so that what it asked for is done and nobody hears of it; `cut` breaks the answer's
    body off in the middle; `stall` never answers, `stall-body` stops in the middle.
    """

    kind: str
    pattern: str
    times: int = 1
    signed_by: str = ""  # only requests of this access key
    call: Callable[[], None] | None = None  # what to call when it is injected for the `at`th time
    at: int = 1
    hits: int = 0


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the store, but for those that a rule is for."""

    daemon_threads = True

    def __init__(self, store_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store_port = store_port
        self.rules: list[Rule] = []
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def kind_for(self, line: str, key: str) -> str:
        """The fault for this request, if there is one."""
        with self._lock:
            for rule in self.rules:
                if rule.hits < rule.times and rule.signed_by in key and re.search(rule.pattern, line):
                    rule.hits += 1
                    if rule.call and rule.hits == rule.at:
                        rule.call()
                    return rule.kind
        return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def setup(self) -> None:
        super().setup()
        # Header and body go as two packets, and the second would wait for an acknowledgement.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        kind = self.server.kind_for(f"{self.command} {unquote(self.path)}", key.group(1) if key else "")
        if kind in ERRORS:
            self._error(int(kind), ERRORS[kind])
        elif kind == "reset":
            self._reset()
        elif kind == "stall":
            self._wait_for_the_end()
        else:
            try:
                status, headers, body = self._pass_on(sent)
            except (OSError, http.client.HTTPException):
                self._reset()  # as the store itself would
                return
            if kind == "lost":
                self._reset()
            else:
                self._answer(status, headers, body, kind)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _pass_on(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        store = http.client.HTTPConnection("127.0.0.1", self.server.store_port)
        try:
            # The headers as they are, with the proxy's own Host: they are signed.
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    store.putheader(name, value)
            store.endheaders(sent)
            response = store.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            store.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, kind: str) -> None:
        self.send_response_only(status)
        skipped = {"connection", "transfer-encoding"} | ({"content-length"} if self.command != "HEAD" else set())
        for name, value in headers:
            if name.lower() not in skipped:
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind else body)
        if kind == "cut":
            self.close_connection = True
        elif kind == "stall-body":
            self._wait_for_the_end()

    def _error(self, status: int, code: str) -> None:
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], body, "")

    def _reset(self) -> None:
        """End the connection with a reset: what a closed one does that is not to linger."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def _wait_for_the_end(self) -> None:
        """Until the client has waited long enough."""
        self.close_connection = True
        self.connection.settimeout(60)
        self.connection.recv(1)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on standard error."""
