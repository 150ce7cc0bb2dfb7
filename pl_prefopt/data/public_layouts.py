"""Layouts of public data sets, as they are published: a few lines for each.

To add one, write a function from ``Fields`` to a row, or for two responses to their scores, and list it in
``PUBLIC_LAYOUTS`` with the columns that show it. It needs a row in the table of ``docs/data.md`` and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pl_prefopt.data.dialogues import BadRowError, as_messages, as_response, shown, split_at_common_prefix
from pl_prefopt.data.layouts import (
    PROMPT_COLUMNS,
    Fields,
    Given,
    Layout,
    check_among,
    needed,
    number,
    numbers,
    objects,
    prompt_of,
    row_of,
    sequence,
)
from pl_prefopt.rows import Message, PreferenceRow

_FIRST: Given = ((1.0, 0.0), False)
_SECOND: Given = ((0.0, 1.0), False)
_TIE: Given = ((0.0, 0.0), False)


def _two(
    name: str,
    first: str,
    second: str,
    judge: Callable[[Fields], Given],
    *,
    verdicts: tuple[str, ...],
    prompt: Callable[[Fields], list[Message]] = prompt_of,
    optional: tuple[str, ...] = PROMPT_COLUMNS,
    parts: Mapping[str, tuple[tuple[str, ...], ...]] | None = None,
) -> Layout:
    """Return a layout of two responses and a verdict on them.

    Args:
        name: what the documentation calls it.
        first: the column of the first response.
        second: that of the second.
        judge: reads the scores of the two.
        verdicts: the columns that ``judge`` needs.
        prompt: reads the prompt.
        optional: further columns that ``judge`` or ``prompt`` reads.
        parts: see ``Layout``.
    """

    def convert(fields: Fields) -> PreferenceRow:
        asked = prompt(fields)
        responses = [as_response(fields[key], key, asked) for key in (first, second)]
        given = judge(fields)
        if responses[0] == responses[1] and given != _TIE:
            raise BadRowError(f"'{first}' and '{second}' are identical, so there is nothing to prefer")
        return row_of(asked, responses, given, names=(f"'{first}'", f"'{second}'"))

    return Layout(
        name=name,
        columns=(first, second, *verdicts),
        optional=optional,
        parts=parts or {},
        convert=convert,
    )


def _strength(key: str) -> Callable[[Fields], Given]:
    """Read a preference from -3 (the first response is much better) to 3 (the second is)."""

    def judge(fields: Fields) -> Given:
        strength = number(fields[key], key)
        return (max(0.0, -strength), max(0.0, strength)), strength != 0

    return judge


def _chosen_by(fields: Fields, key: str, names: Mapping[str, Given]) -> Given:
    """Read which response was chosen from a column of words or numbers."""
    value = fields[key]
    whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    text = str(int(value)) if whole else str(value)
    if text not in names:
        raise BadRowError(f"expected '{key}' to be one of {', '.join(names)}, got {shown(value)}")
    return names[text]


# -- two responses


def _safe_rlhf(fields: Fields) -> Given:
    return _chosen_by(
        fields, "choice" if "choice" in fields else "better_response_id", {"0": _FIRST, "1": _SECOND}
    )


def _shp_prompt(fields: Fields) -> list[Message]:
    return as_messages(fields["history"], "history", role="user")


def _shp(fields: Fields) -> Given:
    given = _chosen_by(fields, "labels", {"1": _FIRST, "0": _SECOND})
    if "score_A" not in fields or "score_B" not in fields:
        return given
    scores = number(fields["score_A"], "score_A"), number(fields["score_B"], "score_B")
    if scores[0] == scores[1]:
        return given
    if (scores[0] > scores[1]) != (given == _FIRST):
        raise BadRowError(
            f"'labels' and the scores {scores[0]:g} and {scores[1]:g} prefer different responses"
        )
    return scores, True


def _webgpt_prompt(fields: Fields) -> list[Message]:
    question = fields["question"]
    return as_messages(
        question.get("full_text") if isinstance(question, Mapping) else question, "question", role="user"
    )


def _webgpt(fields: Fields) -> Given:
    scores = number(fields["score_0"], "score_0"), number(fields["score_1"], "score_1")
    return scores, scores[0] != scores[1]


def _helpsteer3_prompt(fields: Fields) -> list[Message]:
    return as_messages(fields["context"], "context", role="user")


_WORDS_OF_ARENA = {"model_a": _FIRST, "model_b": _SECOND} | dict.fromkeys(
    ("tie", "tie (bothbad)", "both_bad"), _TIE
)


def _arena(fields: Fields) -> PreferenceRow:
    given = _chosen_by(fields, "winner", _WORDS_OF_ARENA)
    first, second = (as_messages(fields[key], key) for key in ("conversation_a", "conversation_b"))
    if first == second and given == _TIE:
        raise BadRowError(
            "'conversation_a' and 'conversation_b' are identical, so there is nothing to prefer"
        )
    prompt, responses = split_at_common_prefix(first, second)
    return row_of(prompt, responses, given, names=("'conversation_a'", "'conversation_b'"))


_SUMMARY_FIELDS = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "), ("post", "POST: "), ("article", ""))


def _summaries(fields: Fields) -> PreferenceRow:
    info, texts = fields["info"], objects(fields["summaries"], "summaries")
    if not isinstance(info, Mapping) or len(texts) != 2:
        raise BadRowError("expected 'info' to be an object and 'summaries' to be a list of two")
    lines = [f"{head}{info[key]}" for key, head in _SUMMARY_FIELDS if info.get(key)]
    if not lines:
        raise BadRowError("expected 'info' to hold a 'post' or an 'article'")
    prompt = as_messages("\n\n".join([*lines, "TL;DR:"]), "info", role="user")
    responses = [as_response(needed(text, "text"), "summaries.text", prompt) for text in texts]
    return row_of(prompt, responses, _chosen_by(fields, "choice", {"0": _FIRST, "1": _SECOND}))


def _openai(fields: Fields) -> PreferenceRow:
    prompt = prompt_of(fields)
    names = ("preferred_output", "non_preferred_output")
    responses = [as_response(fields[key], key, prompt) for key in names]
    if responses[0] == responses[1]:
        raise BadRowError("the preferred and the non-preferred output are identical")
    return row_of(prompt, responses, _FIRST, names=names)


# -- lists


def _nectar(fields: Fields) -> PreferenceRow:
    prompt, answers = prompt_of(fields), objects(fields["answers"], "answers")
    responses = [as_response(needed(item, "answer"), "answers.answer", prompt) for item in answers]
    return row_of(prompt, responses, ([-number(item.get("rank"), "answers.rank") for item in answers], False))


def _generated(fields: Fields) -> PreferenceRow:
    prompt = prompt_of(fields)
    texts = sequence(fields["all_generated_responses"], "all_generated_responses")
    responses = [as_response(text, "all_generated_responses", prompt) for text in texts]
    check_among(fields, prompt, responses)
    return row_of(prompt, responses, (numbers(fields, "all_rm_scores"), True))


def _tree(fields: Fields) -> PreferenceRow:
    """Read the first replies of an OpenAssistant tree; rank 0 is the best."""
    root: Mapping[str, Any] = fields["prompt"]
    prompt = as_messages(needed(root, "text"), "prompt.text", role="user")
    replies = [
        item for item in objects(needed(root, "replies"), "prompt.replies") if item.get("rank") is not None
    ]
    responses = [as_response(needed(item, "text"), "prompt.replies.text", prompt) for item in replies]
    return row_of(
        prompt, responses, ([-number(item["rank"], "prompt.replies.rank") for item in replies], False)
    )


PUBLIC_LAYOUTS = (
    Layout(
        name="OpenAI",
        columns=("input", "preferred_output", "non_preferred_output"),
        parts={"input": (("messages",), ("tools",))},
        convert=_openai,
    ),
    Layout(
        name="Nectar",
        columns=("prompt", "answers"),
        parts={"answers": (("answer",), ("rank",))},
        convert=_nectar,
    ),
    Layout(
        name="graded generations",
        columns=("all_generated_responses", "all_rm_scores"),
        optional=(*PROMPT_COLUMNS, "chosen", "rejected"),
        convert=_generated,
    ),
    _two(
        "HelpSteer2",
        "response_1",
        "response_2",
        _strength("preference_strength"),
        verdicts=("preference_strength",),
    ),
    _two(
        "HelpSteer3",
        "response1",
        "response2",
        _strength("overall_preference"),
        verdicts=("overall_preference", "context"),
        prompt=_helpsteer3_prompt,
        optional=(),
    ),
    _two(
        "PKU-SafeRLHF",
        "response_0",
        "response_1",
        _safe_rlhf,
        verdicts=("better_response_id",),
        optional=(*PROMPT_COLUMNS, "choice"),
    ),
    _two(
        "SHP",
        "human_ref_A",
        "human_ref_B",
        _shp,
        verdicts=("history", "labels"),
        prompt=_shp_prompt,
        optional=("score_A", "score_B"),
    ),
    _two(
        "WebGPT",
        "answer_0",
        "answer_1",
        _webgpt,
        verdicts=("question", "score_0", "score_1"),
        prompt=_webgpt_prompt,
        optional=(),
        parts={"question": (("full_text",),)},
    ),
    _two("stack-exchange-paired", "response_j", "response_k", lambda fields: _FIRST, verdicts=()),
    _two(
        "JudgeBench",
        "response_A",
        "response_B",
        lambda fields: _chosen_by(fields, "label", {"A>B": _FIRST, "B>A": _SECOND, "A=B": _TIE}),
        verdicts=("label",),
    ),
    Layout(name="Chatbot Arena", columns=("conversation_a", "conversation_b", "winner"), convert=_arena),
    Layout(
        name="summarize_from_feedback",
        columns=("info", "summaries", "choice"),
        parts={"info": tuple((key,) for key, _ in _SUMMARY_FIELDS), "summaries": (("text",),)},
        convert=_summaries,
    ),
    Layout(
        name="OpenAssistant trees",
        columns=("message_tree_id", "prompt"),
        objects=("prompt",),
        parts={"prompt": (("text",), ("role",), ("replies",))},
        convert=_tree,
    ),
)
