"""Reward models in the form of transformers: sequence classifiers."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from pl_prefopt.data.renderer import Renderer
from pl_prefopt.data.templates import ChatTemplate, PlainTemplate, TemplateError
from pl_prefopt.errors import ConfigError, DataError, listed
from pl_prefopt.judges.base import Cost, Gives, Judge, JudgedRow, Verdict
from pl_prefopt.judges.models import device_of, hashed, with_context
from pl_prefopt.policies import PolicySpec
from pl_prefopt.policies.spec import Dtype, explained
from pl_prefopt.rows import Message, PreferenceRow, whole_dialogue
from pl_prefopt.scoring.inputs import longest_row

PAGE = "judges.md"

Form = Literal["auto", "chat", "rendered", "plain", "pair"]

_OURS = "reward_model.json"
"""The file that `prefopt export` writes next to a reward model."""


class _Text(NamedTuple):
    """One response as a classifier reads it: its tokens, or why it can't be read."""

    inputs: dict[str, list[int]]
    problem: str = ""


class SequenceClassifier(Judge):
    """Grades each response by a reward model that ``AutoModelForSequenceClassification`` loads.

    Args:
        model: a folder or hub name.
        output: which of the classifier's outputs is the score, for models with several; the logit is taken.
        template: ``chat`` renders prompt and response with the tokeniser's chat template, as the cards of
            most reward models do; ``plain`` writes ``User: ...`` and ``Assistant: ...``; ``pair`` gives
            prompt and response as two texts, as cross-encoders expect; ``rendered`` takes the tokens that
            prefopt trains on, with nothing after the end token; ``auto`` is ``rendered`` for models that
            prefopt exported, else ``chat`` if there is a chat template and ``pair`` otherwise.
        template_arguments: arguments of the chat template, as ``data.template_arguments``.
        dtype: the weights' type in memory.
        revision: the hub revision.
        trust_remote_code: run code that ships with the model.
        device: its device; by default a GPU if there is one.
        batch_size: responses per pass.

    Raises:
        ConfigError: if ``batch_size`` is below 1 or ``template`` is none of these.
    """

    gives: ClassVar[Gives] = "scores"

    def __init__(
        self,
        model: str,
        output: int | None = None,
        template: Form = "auto",
        dtype: Dtype = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        batch_size: int = 16,
        template_arguments: dict[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"expected `batch_size` to be at least 1, got {batch_size}.")
        if template not in ("auto", "chat", "rendered", "plain", "pair"):
            raise ConfigError(
                f"expected `template` to be auto, chat, rendered, plain or pair, got '{template}'."
            )
        self._spec = PolicySpec(
            name=model, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        self._output, self._form, self._device = output, template, device
        self._arguments = template_arguments or {}
        self.batch_size = batch_size
        self._model: Any = None
        self._tokenizer: Any = None
        self._chat: ChatTemplate | None = None
        self._renderer: Renderer | None = None

    @property
    def name(self) -> str:
        """The class and the model's name."""
        return f"{type(self).__name__}({self._spec.name})"

    def fingerprint(self) -> str:
        """Return a hash of the weights and settings."""
        template = self._spec.load_tokenizer().chat_template
        parts = [self._spec.fingerprint, template, self._output, self._form]
        return hashed(type(self).__name__, *parts, *([self._arguments] if self._arguments else []))

    def prepare(self) -> None:
        """Load tokeniser and model.

        Raises:
            ConfigError: if the folder holds no sequence classifier, or one whose score isn't known.
        """
        if self._model is not None:
            return
        self._tokenizer = self._spec.load_tokenizer()
        self._tokenizer.padding_side = "right"
        ours = Path(self._spec.name) / _OURS
        if self._form == "rendered" or (self._form == "auto" and ours.is_file()):
            self._renderer = Renderer(self._tokenizer, setting="template", **_rendered_by(ours))
        else:
            self._choose_chat()
        if self._arguments and self._chat is None:
            raise ConfigError(
                "expected `template_arguments` with `template: chat` only, whose template takes them: remove "
                "them; a model that prefopt exported has its own."
            )
        self._model = self._load().to(device_of(self._device)).eval()

    def _choose_chat(self) -> None:
        has_template = bool(self._tokenizer.chat_template)
        if self._form == "chat" or (self._form == "auto" and has_template):
            if not has_template:
                raise ConfigError(
                    f"`template: chat` expects a tokeniser with a chat template, but that of "
                    f"{self._spec.name} has none: set `template` to pair or plain."
                )
            self._chat = ChatTemplate(self._tokenizer, self._arguments)

    def _load(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        with explained(self._spec.name, "sequence classifier"):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self._spec.name,
                revision=self._spec.revision,
                dtype=self._spec.dtype,
                trust_remote_code=self._spec.trust_remote_code,
                output_loading_info=True,
            )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"expected a trained sequence classifier at {self._spec.name}, but it has no weights for "
                f"{listed(missing, most=3)}, which would be random: name a reward model."
            )
        outputs = int(model.config.num_labels)
        if self._output is None and outputs != 1:
            raise ConfigError(
                f"{self._spec.name} has {outputs} outputs: say which one is the score with `output`, from 0 "
                f"to {outputs - 1}."
            )
        if self._output is not None and not 0 <= self._output < outputs:
            raise ConfigError(f"expected `output` from 0 to {outputs - 1}, got {self._output}.")
        return model

    def close(self) -> None:
        """Free the model."""
        self._model = None

    def judge(self, batch: Sequence[JudgedRow]) -> list[Verdict]:
        """See the base class."""
        self.prepare()
        start = time.monotonic()
        texts = [[self._text(row, place) for place in range(len(row.responses))] for row in batch]
        flat = [text for row in texts for text in row]
        scores = iter(self._scores(flat))
        seconds = (time.monotonic() - start) / max(1, len(batch))
        return [_verdict(row, [next(scores) for _ in row], seconds) for row in texts]

    def _text(self, row: JudgedRow, place: int) -> _Text:
        plain = with_context(row)
        prompt, response = list(plain.prompt), list(plain.responses[place])
        try:
            if self._renderer is not None:
                inputs = _rendered(self._renderer, plain, place)
            else:
                inputs = self._inputs(prompt, response, row.template_args)
        except (TemplateError, DataError) as error:
            return _Text({}, str(error))
        limit, length = longest_row(self._model), len(inputs["input_ids"])
        if limit is not None and length > limit:
            return _Text({}, f"{self._spec.name} takes at most {limit} tokens, and the row has {length}")
        return _Text(inputs)

    def _inputs(self, prompt: list[Message], response: list[Message], arguments: str) -> dict[str, list[int]]:
        if self._chat is not None:
            text = self._chat.bound(arguments).text(whole_dialogue(prompt, response))
            # The template writes special tokens itself.
            return dict(self._tokenizer(text, add_special_tokens=False))
        plain = PlainTemplate(self._tokenizer).bound(arguments)
        if self._form == "plain":
            return dict(self._tokenizer(plain.text(whole_dialogue(prompt, response))))
        first, second = (
            turns[0].content if len(turns) == 1 else plain.text(turns) for turns in (prompt, response)
        )
        return dict(self._tokenizer(first, second))

    @torch.no_grad()
    def _scores(self, texts: Sequence[_Text]) -> list[float | None]:
        """Return the score of each text; texts of similar length share a pass."""
        scores: list[float | None] = [None] * len(texts)
        readable = [place for place, text in enumerate(texts) if not text.problem]
        readable.sort(key=lambda place: len(texts[place].inputs["input_ids"]))
        # transformers finds the last token of padded rows by the configuration's padding token.
        padding = self._tokenizer.pad_token_id
        padded = padding is not None and padding == self._model.config.pad_token_id
        size = self.batch_size if padded else 1
        for start in range(0, len(readable), size):
            places = readable[start : start + size]
            inputs = [texts[place].inputs for place in places]
            batch = self._tokenizer.pad(inputs, return_tensors="pt") if padded else _alone(inputs[0])
            logits = self._model(**{name: one.to(self._model.device) for name, one in batch.items()}).logits
            for place, value in zip(places, logits[:, self._output or 0].float().tolist(), strict=True):
                scores[place] = value if math.isfinite(value) else None
        return scores


def _rendered(renderer: Renderer, row: PreferenceRow, place: int) -> dict[str, list[int]]:
    encoded = renderer.encode(dataclasses.replace(row, responses=(row.responses[place],)))
    ids = [*encoded.prompt_ids, *encoded.response_ids[0]]
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _alone(inputs: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([values]) for name, values in inputs.items()}


def _verdict(texts: Sequence[_Text], scores: Sequence[float | None], seconds: float) -> Verdict:
    problems = [
        text.problem or "the model's output is not finite"
        for text, score in zip(texts, scores, strict=True)
        if score is None
    ]
    read = sum(len(text.inputs.get("input_ids", ())) for text in texts)
    return Verdict(
        scores=tuple(scores),
        problems=tuple(dict.fromkeys(problems)),
        cost=Cost(input_tokens=read, seconds=seconds),
    )


def _rendered_by(file: Path) -> dict[str, Any]:
    """Return the settings by which the rows of an exported reward model's training became text.

    Length limits aren't among them: a row that is too long for the model is an invalid answer.
    """
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        "template": settings.get("template", "auto"),
        "arguments": settings.get("template_arguments") or {},
    }
