"""A small OpenAI-compatible server on the loopback device, with the faults that real ones have."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Say:
    """An answer.

    Attributes:
        text: its text.
        tokens: its tokens, each with the log-probs of the most probable ones; none if the server gives none.
        fault: ``die`` closes the connection, ``half`` sends half of the JSON, ``hang`` never answers,
            ``empty`` is an error with status 200, ``deep`` is JSON that is nested too deeply to be read.
        status: the status code.
        headers: further headers.
        finish: the finish reason.
    """

    text: str = ""
    tokens: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    fault: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"


class FakeServer:
    """Answers chat completions as a function of the question and of how often it has been asked before.

    Args:
        answer: from the request's body and the number of earlier requests with the same body to an answer.

    Attributes:
        bodies: the bodies of all requests.
        keys: their ``Authorization`` headers.
        answered: how often each question was answered in full.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Say]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answered: Counter[str] = Counter()
        self.released = threading.Event()
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = json.dumps(body["messages"], sort_keys=True)
                earlier = fake._count(body, question, self.headers["Authorization"])
                self.say(fake.answer(body, earlier), question)

            def say(self, say: Say, question: str) -> None:
                if say.fault == "die":
                    self.connection.close()
                    return
                if say.fault == "hang":
                    fake.released.wait(30)
                    return
                content = b"[" * 100_000 if say.fault == "deep" else json.dumps(_body(say)).encode()
                self.send_response(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                if say.fault != "half":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if say.fault == "half" else content)
                fake._count_answer(say, question)

        return Handler

    def _count(self, body: dict[str, Any], question: str, key: str | None) -> int:
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            self._asked[question] += 1
            return self._asked[question] - 1

    def _count_answer(self, say: Say, question: str) -> None:
        if say.status == 200 and not say.fault:
            with self._lock:
                self.answered[question] += 1


def _body(say: Say) -> dict[str, Any]:
    if say.status != 200 or say.fault == "empty":
        return {"error": {"message": say.text, "code": say.status}}
    content = [
        {
            "token": token,
            "logprob": top.get(token, 0.0),
            "top_logprobs": [{"token": name, "logprob": value} for name, value in top.items()],
        }
        for token, top in say.tokens
    ]
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": say.text},
                "finish_reason": say.finish,
                "logprobs": {"content": content} if content else None,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7},
    }
