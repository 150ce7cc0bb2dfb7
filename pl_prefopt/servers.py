"""JSON over HTTP with retries, rate limits and time-outs, for OpenAI-compatible servers.

The standard library suffices: one POST of some kilobytes per answer, which takes a model seconds. Proxies are
read from the environment, except for servers on this machine.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pl_prefopt.errors import ConfigError, RunError, first_line, printable

_MOST_BYTES = 64 * 2**20
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({400, 413, 422})
"""Status codes that mean this one request; the others mean all of them."""
_SHOWN = 300
_HTTP_ERRORS = (OSError, http.client.HTTPException, ValueError, RecursionError)
"""What a server that dies, hangs or answers half a JSON raises; the last two are what JSON raises."""


class RefusedRequestError(Exception):
    """Raised for a request that the server refuses, such as a prompt that is too long or filtered.

    The message is the server's.
    """


class ServerError(RunError):
    """A server that can't be reached, fails again and again, or refuses every request."""


class Reply(NamedTuple):
    """A server's answer.

    Attributes:
        body: the JSON object.
        retries: how many requests failed before.
        seconds: how long the request that succeeded took.
    """

    body: dict[str, Any]
    retries: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to try again, and when to give up.

    Attributes:
        timeout: seconds until a request is given up.
        retries: how often a request is repeated that failed, timed out, or was answered with 429 or 5xx.
        backoff: seconds before the first repetition; they double each time, with a random factor from ½ to 1.
        longest_wait: the most seconds before a repetition. A server that asks for more (``Retry-After``) ends
            the run, which can be resumed.
        requests_per_minute: the rate limit; ``None`` for none.

    Raises:
        ConfigError: if a number is out of range.
    """

    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0
    requests_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name, above in (
            ("timeout", True),
            ("retries", False),
            ("backoff", False),
            ("longest_wait", False),
        ):
            value = getattr(self, name)
            if not (value > 0 if above else value >= 0):
                least = "above 0" if above else "at least 0"
                raise ConfigError(f"expected `patience.{name}` to be {least}, got {value}.")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(
                "expected `patience.requests_per_minute` to be above 0, or null for no limit, got "
                f"{self.requests_per_minute}."
            )


class JsonServer:
    """Posts JSON to a server. Several threads may share it.

    Args:
        url: the base URL, such as ``http://127.0.0.1:8000/v1``.
        key_variable: the environment variable that holds the key; without it no key is sent. The key itself
            is never part of a setting, a message or a file.
        patience: when to try again.

    Raises:
        ConfigError: if the URL can't be used.
    """

    def __init__(
        self, url: str, *, key_variable: str | None = None, patience: Patience | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"expected `url` to be a server's base URL, such as http://127.0.0.1:8000/v1, got "
                f"'{printable(url.rpartition('@')[2], limit=100)}'."
            )
        if parts.username is not None or parts.query:
            raise ConfigError(
                "expected `url` without a user name, password or query: put the key into an environment "
                "variable and name that with `key_variable`."
            )
        self.url, self._key_variable = url.rstrip("/"), key_variable
        self._patience = patience or Patience()
        self._gate = _Gate(self._patience.requests_per_minute)
        local = parts.hostname == "localhost" or parts.hostname.startswith(("127.", "::1"))
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirects)

    def check_key(self) -> None:
        """Check that the environment holds the key.

        Raises:
            ConfigError: if it doesn't.
        """
        self._key()

    def post(self, path: str, body: Mapping[str, Any], *, needs: str) -> Reply:
        """Post ``body`` to ``url/path`` and return the answer, trying again where that may help.

        Args:
            path: the path after the base URL.
            body: a JSON object.
            needs: the list that an answer must have: some servers report failures with status 200.

        Raises:
            RefusedRequestError: if the server refuses this request.
            ServerError: if the server can't be reached or fails again and again, or refuses the key.
        """
        reason = ""
        for attempt in range(self._patience.retries + 1):
            self._gate.wait()
            start = time.monotonic()
            try:
                return Reply(self._once(path, body, needs), attempt, time.monotonic() - start)
            except urllib.error.HTTPError as error:
                reason = self._http_reason(error)
                if error.code in _REFUSED:
                    raise RefusedRequestError(reason) from error
                if error.code not in _RETRIED:
                    raise self._given_up(f"answered {reason}", error.code) from error
                asked = _retry_after(error.headers)
            except _HTTP_ERRORS as error:
                reason, asked = self._clean(_connection_reason(error, self._patience.timeout)), None
            if asked is not None and asked > self._patience.longest_wait:
                raise self._given_up(f"answered {reason} and asks to wait {asked:.0f} s")
            if attempt < self._patience.retries:
                self._pause(attempt, asked)
        raise self._given_up(f"failed {self._patience.retries + 1} times, the last time with: {reason}")

    def get(self, path: str, *, needs: str) -> dict[str, Any]:
        """Return the answer at ``url/path``, asked for once.

        Args:
            path: the path after the base URL.
            needs: the list that an answer must have.

        Raises:
            ServerError: if there is none.
        """
        try:
            return self._once(path, None, needs)
        except urllib.error.HTTPError as error:
            raise self._given_up(f"answered {self._http_reason(error)}", error.code) from error
        except _HTTP_ERRORS as error:
            reason = self._clean(_connection_reason(error, self._patience.timeout))
            raise self._given_up(f"gives no answer: {reason}") from error

    def _pause(self, attempt: int, asked: float | None) -> None:
        """Wait before a repetition. What the server asks for holds for all threads."""
        if asked:
            self._gate.hold(asked)
            return
        most = min(self._patience.backoff * 2.0**attempt, self._patience.longest_wait)
        time.sleep(most * random.uniform(0.5, 1.0))

    def _once(self, path: str, body: Mapping[str, Any] | None, needs: str) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data=content, headers=headers)
        deadline = time.monotonic() + self._patience.timeout
        with self._opener.open(request, timeout=self._patience.timeout) as response:
            text = _read(response.read1, deadline)
        answer = json.loads(text)
        if not (isinstance(answer, dict) and isinstance(answer.get(needs), list) and answer[needs]):
            said = _message_in(text.decode("utf-8", "replace"))
            raise ValueError(f"an answer without '{needs}': {said}")
        return answer

    def _key(self) -> str:
        if self._key_variable is None:
            return ""
        key = os.environ.get(self._key_variable, "").strip()
        if not key:
            raise ConfigError(
                f"expected a key in the environment variable {self._key_variable}, which `key_variable` "
                "names, but it isn't set."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"the key in {self._key_variable} has characters that a key can't have.")
        return key

    def _clean(self, text: str) -> str:
        """Return a text for a message, on one line and without the key, which some servers repeat."""
        key = self._key() if self._key_variable else ""
        shown = printable(" ".join((text.replace(key, "***") if key else text).split()), limit=_SHOWN)
        return re.sub(r"sk-[\w-]{8,}", "***", shown)

    def _http_reason(self, error: urllib.error.HTTPError) -> str:
        try:
            text = error.read(1 << 16).decode("utf-8", "replace")
        except _HTTP_ERRORS:
            text = ""
        return self._clean(f"HTTP {error.code} ({_message_in(text) or error.reason})")

    def _given_up(self, what: str, code: int = 0) -> ServerError:
        hint = "; `key_variable` names the environment variable with the key" if code in (401, 403) else ""
        return ServerError(f"the server {self.url} {what}{hint}.")


class _Gate:
    """Spaces out requests of all threads."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Wait for this thread's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = max(self._next, turn + self._gap) if self._gap else self._next
        time.sleep(max(0.0, turn - now))

    def hold(self, seconds: float) -> None:
        """Hold back all requests that have not been sent yet."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which could take the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read(read: Callable[[int], bytes], deadline: float) -> bytes:
    """Read an answer until its end or the deadline: a server may send a byte now and then for ever."""
    parts, size = [], 0
    while part := read(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _MOST_BYTES:
            raise ValueError(f"an answer of more than {_MOST_BYTES >> 20} MiB")
    return b"".join(parts)


def _connection_reason(error: Exception, timeout: float) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError) or "timed out" in str(inner):
        return f"no answer within {timeout:g} s"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return f"an answer that is no JSON ({first_line(error)})"
    return first_line(inner) if isinstance(inner, BaseException) else str(inner)


def _message_in(text: str) -> str:
    """Return the message of an error's body, in the forms of OpenAI, vLLM and FastAPI."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    for place in (body.get("error"), body) if isinstance(body, dict) else ():
        if isinstance(place, str):
            return place
        if isinstance(place, dict):
            found = place.get("message") or place.get("detail")
            if found:
                return str(found)
    return text.strip()


def _retry_after(headers: Any) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date; ``None`` if there are none."""
    value = (headers.get("Retry-After") if headers is not None else None) or ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
