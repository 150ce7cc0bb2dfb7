"""The part of the Hugging Face hub's HTTP interface that an upload uses, on the loopback device."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "hf_only_for_this_test"


@dataclass
class Model:
    """A model on the hub."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class FakeHub:
    """Takes models of the namespace ``me`` from whoever has ``TOKEN``.

    Attributes:
        models: what it has, by name.
        requests: the method, path and ``Authorization`` header of every request.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self._large: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        self.requests.append((method, path, token))
        large = re.fullmatch("/large/(.*)", path)
        if large:
            assert hashlib.sha256(body).hexdigest() == large[1]
            self._large[large[1]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        return self._create(json.loads(body)) if path == "/api/repos/create" else self._of_model(path, body)

    def _of_model(self, path: str, body: bytes) -> tuple[int, Any]:
        found = re.fullmatch(r"(?:/api/models)?/([\w-]+/[\w-]+)(.*?)(?:/main)?", path)
        assert found, path
        name, action = found[1], found[2]
        if name not in self.models:
            return 404, {"error": "Repository not found"}
        if action == ".git/info/lfs/objects/batch":
            return 200, {"objects": [self._large_file(one) for one in json.loads(body)["objects"]]}
        if action == "/preupload":
            return 200, {"files": [_upload_mode(file["path"]) for file in json.loads(body)["files"]]}
        if action == "/commit":
            for line in map(json.loads, body.splitlines()):
                self._commit(self.models[name], line["key"], line["value"])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}
        model = self.models[name]
        files = [{"rfilename": file} for file in model.files]
        return 200, {"id": name, "private": model.private, "sha": "0" * 40, "siblings": files}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return 403, {
                "error": f"You don't have the rights to create a model under {asked['organization']}"
            }
        status = 409 if name in self.models else 200
        private = asked.get("private") or asked.get("visibility") == "private"
        self.models.setdefault(name, Model(private))
        return status, {"url": f"{self.url}/{name}", "error": "You already created this model repo"}

    def _large_file(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}

    def _commit(self, model: Model, kind: str, value: dict[str, Any]) -> None:
        if kind == "file":
            model.files[value["path"]] = base64.b64decode(value["content"])
        if kind == "lfsFile":
            model.files[value["path"]] = self._large[value["oid"]]
        if kind == "deletedFile":
            del model.files[value["path"]]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                path = self.path.partition("?")[0]
                status, answer = hub.answer(self.command, path, self.headers["Authorization"], body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                if "error" in answer:
                    self.send_header("X-Error-Message", answer["error"])
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.do_POST()

            def do_PUT(self) -> None:
                self.do_POST()

        return Handler


def _upload_mode(path: str) -> dict[str, Any]:
    return {
        "path": path,
        "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
        "shouldIgnore": False,
    }
