"""Generative judges that run in this process with transformers, for grades and for comparisons."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np

from pl_prefopt.data.renderer import TemplateName
from pl_prefopt.errors import ConfigError, DataError, listed
from pl_prefopt.generation import Engine, Sample, Sampling, TransformersEngine
from pl_prefopt.judges.base import Cost, JudgedRow, Verdict
from pl_prefopt.judges.generative import Answer, Comparing, GenerativeJudge, Grading, TokenProbabilities
from pl_prefopt.judges.models import LanguageModel, hashed
from pl_prefopt.judges.templating import Token
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message

PAGE = "judges.md"


class LocalJudge(GenerativeJudge):
    """Base class of the generative judges that run in this process.

    Answers are decoded greedily by transformers. Where the template's verdicts are single tokens, their
    probabilities are read from our scorer: over the whole vocabulary, so that every spelling of a verdict
    that is one token (``A``, `` A``, ``[A``) counts.

    Args:
        model: the model.
        template: the name of a template of ours or a YAML file, see ``JudgeTemplate``.
        chat_template: how questions are rendered, as ``data.template``.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        max_tokens: the maximum number of tokens of an answer.
        token_probabilities: ``auto`` takes the probabilities of the verdict's token where the answer has
            one, ``always`` makes an answer without them invalid, ``never`` reads only the verdict.
        rationales: whether to keep the answers' texts.
        device: the model's device; by default a GPU if there is one.
        batch_size: rows per batch, and questions per pass.

    Raises:
        ConfigError: if a setting can't work.
    """

    def __init__(
        self,
        model: PolicySpec,
        template: str,
        chat_template: TemplateName | str = "auto",
        template_arguments: dict[str, Any] | None = None,
        max_tokens: int = 1024,
        token_probabilities: TokenProbabilities = "auto",
        rationales: bool = True,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        for name, value in {"max_tokens": max_tokens, "batch_size": batch_size}.items():
            if value < 1:
                raise ConfigError(f"expected `{name}` to be at least 1, got {value}.")
        super().__init__(template, token_probabilities, rationales)
        self.batch_size = batch_size
        self._language_model = LanguageModel(
            model, template=chat_template, arguments=template_arguments, device=device
        )
        self._sampling = Sampling(n=1, temperature=0.0, max_new_tokens=max_tokens)
        self._engine: Engine | None = None
        self._open = ExitStack()

    @property
    def name(self) -> str:
        """The class and the model."""
        return f"{type(self).__name__}({self._language_model.spec.name})"

    def fingerprint(self) -> str:
        """Return a hash of the model's weights, tokeniser and template, and of the judge's template."""
        return hashed(
            type(self).__name__,
            self._language_model.fingerprint,
            self.template.fingerprint,
            self._sampling.max_new_tokens,
            self._token_probabilities,
        )

    def prepare(self) -> None:
        """Check template and limits, then load the model.

        Raises:
            ConfigError: if the chat template refuses the questions, or ``max_tokens`` leaves no room for any.
        """
        if self._engine is not None:
            return
        model = self._language_model
        self._check_chat_template()
        if model.limit is not None and self._sampling.max_new_tokens >= model.limit:
            raise ConfigError(
                f"expected `max_tokens` to be below {model.limit}, the context of {model.spec.name}, got "
                f"{self._sampling.max_new_tokens}."
            )
        if self._token_probabilities == "always" and not self._label_tokens:
            raise ConfigError(
                f"token_probabilities is 'always', but {model.spec.name} has no single token for some of the "
                f"labels {listed(self.template.labels)}: change the template, or set it to auto."
            )
        engine = TransformersEngine(
            lambda: model.model, end=model.renderer.end_token_id, identity=model.fingerprint
        )
        self._engine = self._open.enter_context(engine)

    def _check_chat_template(self) -> None:
        roles = ["system", "user"] if self.template.system else ["user"]
        try:
            self._language_model.renderer.encode_prompt([Message(role, "Text.") for role in roles])
        except DataError as error:
            raise ConfigError(
                f"the chat template of {self._language_model.spec.name} refuses the judge's questions: "
                f"{error}; if it takes no system prompt, move `system` of the judge's template into `user`."
            ) from error

    def close(self) -> None:
        """Free the model."""
        self._open.close()
        self._engine = None
        self._language_model.free()

    @cached_property
    def _label_tokens(self) -> dict[int, str]:
        """The tokens that consist of a verdict, with the verdict; empty unless each verdict has one."""
        tokenizer = self._language_model.renderer.tokenizer
        size = min(len(tokenizer), self._language_model.vocabulary)
        texts = tokenizer.batch_decode([[token] for token in range(size)], skip_special_tokens=True)
        found = {
            token: self.template.label_of(text)
            for token, text in enumerate(texts)
            if self.template.is_label(text)
        }
        return found if set(found.values()) == set(self.template.labels) else {}

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        self.prepare()
        asked = [self._questions(row) for row in batch]
        answers = iter(self._ask([values for own in asked for values in own]))
        return [
            self._verdict(row, list(itertools.islice(answers, len(own))))
            for row, own in zip(batch, asked, strict=True)
        ]

    def _ask(self, questions: Sequence[dict[str, Any]]) -> list[Answer]:
        """Return the answer to each question; questions of similar length share a pass."""
        answers = [Answer(None)] * len(questions)
        prompts: dict[int, list[int]] = {}
        for place, values in enumerate(questions):
            try:
                prompts[place] = self._prompt(values)
            except DataError as error:
                answers[place] = Answer(None, problem=str(error))
        order = sorted(prompts, key=lambda place: len(prompts[place]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            for place, answer in zip(places, self._answers([prompts[one] for one in places]), strict=True):
                answers[place] = answer
        return answers

    def _prompt(self, values: dict[str, Any]) -> list[int]:
        """Return the tokens of a question.

        Raises:
            DataError: if the chat template rejects it, or it is too long.
        """
        messages = [Message(one["role"], one["content"]) for one in self.template.messages(values)]
        model = self._language_model
        ids = model.renderer.encode_prompt(messages)
        if model.limit is not None and len(ids) + self._sampling.max_new_tokens > model.limit:
            raise DataError(
                f"{model.spec.name} takes at most {model.limit} tokens, and the question has {len(ids)} with "
                f"{self._sampling.max_new_tokens} to come (`max_tokens`)"
            )
        return ids

    def _answers(self, prompts: Sequence[list[int]]) -> list[Answer]:
        """Return the answers to questions that share a pass."""
        assert self._engine is not None, "`prepare` comes first"
        start = time.monotonic()
        samples = [one for (one,) in self._engine.sample(prompts, [[0]] * len(prompts), self._sampling)]
        texts = [self._text(sample.token_ids) for sample in samples]
        tokens = self._tokens(prompts, samples, texts)
        seconds = (time.monotonic() - start) / len(prompts)
        return [
            self._read(
                text,
                own,
                Cost(input_tokens=len(prompt), output_tokens=len(sample.token_ids), seconds=seconds),
                cut=sample.finish_reason == "length",
            )
            for prompt, sample, text, own in zip(prompts, samples, texts, tokens, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._language_model.renderer.tokenizer.decode(ids, skip_special_tokens=True))

    def _tokens(
        self, prompts: Sequence[list[int]], samples: Sequence[Sample], texts: Sequence[str]
    ) -> list[list[Token]]:
        """Return the tokens of answers, that of the verdict with the probabilities of all verdicts."""
        pieces: list[list[str]] = [[] for _ in samples]
        places: dict[int, int] = {}
        if self._wants_probabilities and self._label_tokens:
            for number, (sample, text) in enumerate(zip(samples, texts, strict=True)):
                if self.template.value(text) is None:
                    continue
                pieces[number] = self._pieces(sample.token_ids)
                place = self.template.verdict_token(text, pieces[number])
                if place is not None:
                    places[number] = place
        tops = {}
        if places:
            prefixes = [[*prompts[n], *samples[n].token_ids[:place]] for n, place in places.items()]
            log_probs = self._language_model.next_token_log_probs(prefixes, list(self._label_tokens))
            tops = dict(zip(places, map(self._top, log_probs), strict=True))
        return [
            [Token(text, tops[number] if places.get(number) == k else {}) for k, text in enumerate(own)]
            for number, own in enumerate(pieces)
        ]

    def _top(self, log_probs: Sequence[float]) -> dict[str, float]:
        """Return the log-probs of the verdicts, each the sum over the tokens that say it."""
        found: dict[str, float] = {}
        for label, log_prob in zip(self._label_tokens.values(), log_probs, strict=True):
            found[label] = float(np.logaddexp(found.get(label, -np.inf), log_prob))
        return found

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """Return by how much each token extends the text; a character of several tokens is the last one's."""
        whole, pieces = "", []
        for end in range(1, len(ids) + 1):
            text = self._text(ids[:end])
            grown = text if not text.endswith("\N{REPLACEMENT CHARACTER}") else whole
            pieces.append(grown[len(whole) :])
            whole = grown
        return pieces


class LocalScores(Grading, LocalJudge):
    """Grades each response with a generative model in this process.

    Where the template's verdicts are single tokens, the score is the mean of their values under their
    probabilities (Liu et al., "G-Eval", arXiv 2303.16634); otherwise it is the verdict in the answer.
    """

    def __init__(self, model: PolicySpec, template: str = "pointwise_token", **settings: Any) -> None:
        super().__init__(model, template, **settings)


class LocalPairs(Comparing, LocalJudge):
    """Compares responses in pairs, each pair in both orders, with a generative model in this process.

    The probability of a pair is the mean of both orders, which removes a preference for the first or the
    second place. If either answer is invalid, so is the comparison. Scores are win rates over the other
    responses. R responses take R(R − 1) questions.
    """

    def __init__(self, model: PolicySpec, template: str = "pairwise_token", **settings: Any) -> None:
        super().__init__(model, template, **settings)
