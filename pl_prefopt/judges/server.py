"""Generative judges over an OpenAI-compatible server: grades of single responses, and comparisons."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_prefopt.errors import ConfigError, DataError, printable
from pl_prefopt.judges.answer_cache import AnswerCache, key_of
from pl_prefopt.judges.base import Cost, JudgedRow, Verdict
from pl_prefopt.judges.generative import Answer, Comparing, GenerativeJudge, Grading, TokenProbabilities
from pl_prefopt.judges.templating import Token
from pl_prefopt.servers import JsonServer, Patience, RefusedRequestError, ServerError

PAGE = "judges.md"

_PATH = "chat/completions"
_MANY_REFUSALS = 10
"""So many refusals without any answer mean that the server refuses the settings, not the prompts."""
_MOST_LOGPROBS = 20
_ROUNDING = 0.01


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What tokens cost, in any currency.

    Attributes:
        input: the price of a million tokens read.
        output: the price of a million tokens generated.
    """

    input: float = 0.0
    output: float = 0.0


class ServerJudge(GenerativeJudge):
    """What the judges over a server have in common.

    Each answer is on disk as soon as it arrives, so that interrupted runs pay for nothing twice. A prompt
    that the server refuses and an answer without a verdict are invalid answers, which are counted.

    Args:
        url: the base URL, such as ``http://127.0.0.1:8000/v1``.
        model: the name of the model on the server.
        template: the name of a template of ours or a YAML file, see ``JudgeTemplate``.
        key_variable: the environment variable that holds the key; without it no key is sent.
        version: a text that tells models of the same name apart: change it if the server's model changes.
        max_tokens: the maximum number of tokens of an answer; ``null`` leaves it to the server.
        temperature: of the softmax; ``null`` leaves it to the server, as some models take none.
        token_probabilities: ``auto`` takes the probabilities of the verdict's token where the answer has
            them, ``always`` takes an answer without them for invalid, ``never`` reads the verdict alone.
        extra_body: further fields of each request, such as ``reasoning_effort``.
        concurrency: how many requests may run at the same time.
        patience: time-outs, repetitions and the rate limit.
        prices: the prices of tokens, for the cost.
        rationales: whether to keep the answers' texts.
        cache_dir: the folder of all answers.
        batch_size: rows per batch.

    Raises:
        ConfigError: if a setting can't work.
    """

    def __init__(
        self,
        url: str,
        model: str,
        template: str,
        key_variable: str | None = None,
        version: str = "",
        max_tokens: int | None = 1024,
        temperature: float | None = 0.0,
        token_probabilities: TokenProbabilities = "auto",
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 8,
        patience: Patience | None = None,
        prices: Prices | None = None,
        rationales: bool = True,
        cache_dir: str = "~/.cache/pl_prefopt/answers",
        batch_size: int = 64,
    ) -> None:
        numbers = {"max_tokens": max_tokens, "concurrency": concurrency, "batch_size": batch_size}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ConfigError(f"expected `{name}` to be at least 1, got {value}.")
        super().__init__(template, token_probabilities, rationales)
        self.model, self.version = model, version
        self.batch_size, self.concurrency = batch_size, concurrency
        given = {"max_tokens": max_tokens, "temperature": temperature}
        self._settings: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        self._settings |= extra_body or {}
        if self._wants_probabilities:
            self._settings |= {"logprobs": True, "top_logprobs": _MOST_LOGPROBS}
        self._server = JsonServer(url, key_variable=key_variable, patience=patience)
        self._prices, self._cache_dir = prices or Prices(), Path(cache_dir)
        self._cache: AnswerCache | None = None
        self._answered = self._refused = 0

    @property
    def name(self) -> str:
        """The class and the model."""
        return f"{type(self).__name__}({printable(self.model)})"

    def fingerprint(self) -> str:
        """Return a hash of model, version, template and settings; not of the URL: a server may move."""
        parts = [
            self.model,
            self.version,
            self.template.fingerprint,
            self._settings,
            self._token_probabilities,
        ]
        text = json.dumps([type(self).__name__, *parts], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def prepare(self) -> None:
        """Check the key and open the file of answers."""
        self._server.check_key()
        if self._cache is None:
            self._cache = AnswerCache(self._cache_dir)

    def close(self) -> None:
        """Close the file of answers."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class. Equal questions of a batch are asked once."""
        self.prepare()
        asked = [[self._request(values) for values in self._questions(row)] for row in batch]
        answers = self._ask([one for own in asked for one in own if not isinstance(one, str)])
        return [
            self._verdict(
                row, [Answer(None, problem=one) if isinstance(one, str) else next(answers) for one in own]
            )
            for row, own in zip(batch, asked, strict=True)
        ]

    # -- asking

    def _request(self, values: Mapping[str, Any]) -> dict[str, Any] | str:
        """Return the request with a question, or why there is none."""
        try:
            messages = self.template.messages(values)
        except DataError as error:
            return str(error)
        return {"model": self.model, "messages": messages, **self._settings}

    def _ask(self, requests: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
        """Return the answer to each request, in order."""
        # The labels decide what is stored of an answer.
        version = json.dumps([self.version, sorted(self.template.labels)])
        keys = [key_of(request, version) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge") as pool:
            futures = {key: pool.submit(self._answer, key, request) for key, request in unique.items()}
            _finish(list(futures.values()))
        first = set[str]()
        for key in keys:
            answer = futures[key].result()
            yield answer if key not in first else answer._replace(cost=Cost(cached=1))
            first.add(key)

    def _answer(self, key: str, request: Mapping[str, Any]) -> Answer:
        """Return an answer from the disk, or ask the server and store what it says."""
        assert self._cache is not None, "`prepare` comes first"
        stored = self._cache.get(key)
        if stored is not None:
            return self._read_stored(stored, Cost(cached=1))
        start = time.monotonic()
        try:
            reply = self._server.post(_PATH, request, needs="choices")
        except RefusedRequestError as error:
            self._refused += 1
            if not self._answered and self._refused >= _MANY_REFUSALS:
                raise ServerError(
                    f"the server {self._server.url} refused the first {self._refused} requests, the last one "
                    f"with {error}; change the judge's settings."
                ) from error
            seconds = time.monotonic() - start
            return Answer(None, problem=f"the server refused the prompt: {error}", cost=Cost(seconds=seconds))
        self._answered += 1
        body = self._kept(reply.body)
        self._cache.put(key, body)
        usage = body["usage"]
        tokens = Cost(
            requests=1,
            retries=reply.retries,
            input_tokens=usage[0],
            output_tokens=usage[1],
            seconds=reply.seconds,
            money=(usage[0] * self._prices.input + usage[1] * self._prices.output) / 1e6,
        )
        return self._read_stored(body, tokens)

    # -- reading

    def _kept(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is stored of an answer: text, tokens, why it ended, and the tokens that are paid for.

        Other tokens than verdicts are stored without the alternatives, which would take most of the space.
        """
        choice = _mapping(body["choices"][0])
        message = _mapping(choice.get("message"))
        content = _mapping(choice.get("logprobs")).get("content") or []
        tokens = [(str(one.get("token")), one) for one in content if isinstance(one, Mapping)]
        usage = _mapping(body.get("usage"))
        return {
            "text": str(message.get("content") or ""),
            "refusal": str(message.get("refusal") or ""),
            "reason": str(choice.get("finish_reason") or ""),
            "tokens": [[text, _top(one) if self.template.is_label(text) else {}] for text, one in tokens],
            "usage": [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")],
        }

    def _read_stored(self, body: Mapping[str, Any], cost: Cost) -> Answer:
        """Read an answer as it is stored."""
        text = body["text"]
        if body["reason"] == "content_filter" or body["refusal"]:
            return Answer(None, text, f"the model refused: {printable(body['refusal'] or 'filtered')}", cost)
        tokens = [Token(one, dict(top)) for one, top in body["tokens"]]
        return self._read(text, tokens, cost, cut=body["reason"] == "length")


class ServerScores(Grading, ServerJudge):
    """Grades each response by a generative model over an OpenAI-compatible server.

    Where the template's verdicts are single tokens and the server gives their probabilities, the score is the
    mean of their values (Liu et al., "G-Eval", arXiv 2303.16634); otherwise it is the verdict in the answer.
    """

    def __init__(self, url: str, model: str, template: str = "pointwise", **settings: Any) -> None:
        super().__init__(url, model, template, **settings)


class ServerPairs(Comparing, ServerJudge):
    """Compares responses in pairs, each pair in both orders, by a generative model over a server.

    The probability of a pair is the mean of both orders, which takes out a preference for the first or the
    second place. If either answer is invalid, so is the comparison. Scores are win rates over the other
    responses. R responses take R(R − 1) requests.
    """

    def __init__(self, url: str, model: str, template: str = "pairwise", **settings: Any) -> None:
        super().__init__(url, model, template, **settings)


def _finish(futures: list[Future[Answer]]) -> None:
    """Wait for all, or after an error only for those that are under way: their answers are paid for."""
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
    failed = [one for one in futures if one.done() and not one.cancelled() and one.exception() is not None]
    if failed:
        failed[0].result()


def _top(token: Mapping[str, Any]) -> dict[str, float]:
    """Return the log-probs of the most probable tokens at a place, the chosen one among them.

    What is no log-prob is left out: NaN, or a number above 0 by more than rounding.
    """
    found = {}
    others = token.get("top_logprobs")
    for one in (token, *(others if isinstance(others, list) else ())):
        log_prob = one.get("logprob") if isinstance(one, Mapping) else None
        if isinstance(log_prob, int | float) and log_prob <= _ROUNDING:
            found[str(one.get("token"))] = float(log_prob)
    return found


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
