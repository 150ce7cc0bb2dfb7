"""Sampling from an OpenAI-compatible server, such as vLLM's or SGLang's."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pl_prefopt.errors import ConfigError, RunError, first_line
from pl_prefopt.generation.base import Engine, FinishReason, RefusedPromptError, Sample, Sampling
from pl_prefopt.processes import last_line, require_permission, start, stop
from pl_prefopt.servers import JsonServer, Patience, RefusedRequestError, ServerError

_POLICY, _PORT = "{policy}", "{port}"
_TOKEN = "token_id:"
_PATIENCE = 10.0
"""Seconds to wait for a server that should be running already."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server to sample from; without ``url`` and ``command`` there is none.

    Attributes:
        url: the address of a running server, such as ``http://127.0.0.1:8000``.
        command: instead, the program that serves the policy and its arguments; ``{policy}`` and ``{port}`` in
            them are filled in. It is started, waited for, watched and stopped.
        model: the model's name on the server; by default the first that it lists.
        concurrency: how many requests may be open at a time.
        start_timeout: seconds to wait for the server to answer.
        timeout: seconds to wait for an answer.
        retries: how often a request that failed is repeated.
        key_variable: the environment variable that holds the server's key; optional.
    """

    url: str | None = None
    command: list[str] | None = None
    model: str | None = None
    concurrency: int = 32
    start_timeout: float = 600.0
    timeout: float = 600.0
    retries: int = 2
    key_variable: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None and self.command is not None:
            raise ConfigError("expected `engine.url` of a running server or `engine.command`, not both.")
        if self.command is not None and not any(_PORT in word for word in self.command):
            raise ConfigError("expected `engine.command` to contain {port}, the port that it must serve on.")
        if self.concurrency < 1:
            raise ConfigError(f"expected `engine.concurrency` to be at least 1, got {self.concurrency}.")

    def __bool__(self) -> bool:
        """Whether there is a server."""
        return self.url is not None or self.command is not None


class OpenAIServer(Engine):
    """Samples from ``/v1/completions``, one request per sample, since each sample has its own seed.

    Prompts are sent as token ids, and the end tokens as ``stop_token_ids``. A server that understands
    ``return_token_ids`` or ``return_tokens_as_token_ids`` (vLLM) gives token ids; the text of others is
    tokenised again.

    Args:
        server: the settings.
        policy: what ``{policy}`` stands for, as a function that is called when the command starts.
        identity: a hash of the policy.
        ends: the tokens that end a response.
        log: the file for the output of ``command``.
        allowed: whether ``command`` may be run.

    Raises:
        ConfigError: if there is a command and commands aren't allowed.
    """

    def __init__(
        self,
        server: Server,
        *,
        policy: Callable[[], str],
        identity: str,
        ends: list[int],
        log: Path,
        allowed: bool,
    ) -> None:
        if server.command is not None:
            require_permission(server.command, allowed=allowed, what="`engine.command`")
        self.server, self.url = server, server.url
        self._policy, self._identity, self._ends, self._log = policy, identity, ends, log
        self._process: subprocess.Popen[bytes] | None = None
        self._served = ""
        self._client: JsonServer | None = None
        self._pool: ThreadPoolExecutor | None = None

    @property
    def identity(self) -> str:
        """The policy's hash, and the model's name."""
        return f"server {self._identity} {self.server.model or ''}".strip()

    def __enter__(self) -> Self:
        """Start the server, if it is ours, and wait until it answers."""
        if self.server.command is not None:
            port = _free_port()
            filled = {_POLICY: self._policy(), _PORT: str(port)}
            self.url = f"http://127.0.0.1:{port}"
            self._process = start([_fill(word, filled) for word in self.server.command], self._log)
        self._pool = ThreadPoolExecutor(self.server.concurrency)
        patience = Patience(timeout=self.server.timeout, retries=self.server.retries)
        self._client = JsonServer(f"{self.url}/v1", key_variable=self.server.key_variable, patience=patience)
        try:
            self._served = self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, if it is ours."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            stop(self._process)
            self._process = None

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, one per seed."""
        orders = [
            (list(prompt), seed, sampling) for prompt, own in zip(prompts, seeds, strict=True) for seed in own
        ]
        assert self._pool is not None, "the engine is entered first"
        made = iter(list(self._pool.map(self._one, orders)))
        return [[next(made) for _ in own] for own in seeds]

    def _one(self, order: tuple[list[int], int, Sampling]) -> Sample:
        prompt, seed, sampling = order
        answer = self._post(
            {
                "model": self._served,
                "prompt": prompt,
                "n": 1,
                "seed": seed,
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                # Neutral where the server would take the model's own generation settings.
                "top_k": sampling.top_k or -1,
                "repetition_penalty": 1.0,
                "logprobs": 0,
                "stop_token_ids": self._ends,
                "skip_special_tokens": False,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            }
        )
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            found = len(choices) if isinstance(choices, list) else "no"
            raise RunError(f"expected the engine at {self.url} to return 1 sample, got {found}.")
        try:
            return read_choice(choices[0], seed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"expected a completion from the engine at {self.url}, got something else "
                f"({type(error).__name__}: {first_line(error)})."
            ) from error

    def _post(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._client is not None, "the engine is entered first"
        try:
            return self._client.post("completions", body, needs="choices").body
        except RefusedRequestError as error:
            said = str(error).removesuffix(".")
            raise RefusedPromptError(f"the engine at {self.url} refuses a prompt: {said}.") from error
        except ServerError as error:
            raise RunError(f"{str(error).removesuffix('.')}{self._died()}") from error

    def _wait(self) -> str:
        """Wait until the server answers; return the name of its model."""
        until = time.monotonic() + (self.server.start_timeout if self._process is not None else _PATIENCE)
        once = Patience(timeout=10.0, retries=0)
        asked = JsonServer(f"{self.url}/v1", key_variable=self.server.key_variable, patience=once)
        while True:
            try:
                models = asked.get("models", needs="data")["data"]
                return self.server.model or str(models[0]["id"])
            except (ServerError, LookupError, TypeError) as error:
                if self._process is not None and self._process.poll() is not None:
                    raise RunError(f"the engine didn't start{self._died()}") from error
                if time.monotonic() > until:
                    raise RunError(
                        f"the engine at {self.url} doesn't answer ({first_line(error)}){self._died()}"
                    ) from error
                time.sleep(0.2)

    def _died(self) -> str:
        """Return the end of a sentence: what became of the process, and its last words."""
        if self._process is None:
            return ": start the server, or correct `engine.url`."
        said = last_line(self._log)
        state = self._process.poll()
        ended = "" if state is None else f": its command ended with status {state}"
        where = f"the last line of {self._log} is '{said}'" if said else f"see {self._log}"
        return f"{ended}; {where}."


def read_choice(choice: Mapping[str, Any], seed: int) -> Sample:
    """Return the sample in one choice of a completion.

    Examples:
        >>> told = {"tokens": ["token_id:5", "token_id:2"], "token_logprobs": [-0.5, -0.1]}
        >>> read_choice({"text": "a", "finish_reason": "stop", "logprobs": told}, 7)
        Sample(token_ids=[5, 2], log_probs=[-0.5, -0.1], finish_reason='stop', seed=7, text=None)
    """
    told = choice.get("logprobs") or {}
    tokens = [str(token) for token in told.get("tokens") or []]
    ids = choice.get("token_ids")
    if ids is None and tokens and all(token.startswith(_TOKEN) for token in tokens):
        ids = [int(token.removeprefix(_TOKEN)) for token in tokens]
    log_probs = [float(value) for value in told.get("token_logprobs") or []]
    finish: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    if ids is None:
        return Sample([], log_probs, finish, seed, str(choice["text"]))
    return Sample([int(token) for token in ids], log_probs, finish, seed)


def _fill(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
