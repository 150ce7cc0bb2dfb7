"""The settings of chat templates: arguments for all rows, and a file of one's own."""

from __future__ import annotations

import dataclasses

import pytest

from pl_prefopt.data import PreferenceDataModule, Renderer
from pl_prefopt.errors import ConfigError
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import FrozenModel
from tests.data.support import Recorder, pair, row, trainer, write_jsonl
from tests.support import CHATML, tiny_tokenizer

THINKING = CHATML.replace(
    "{% if add_generation_prompt %}",
    "{% if add_generation_prompt and enable_thinking is false %}<quiet>{% endif %}"
    "{% if add_generation_prompt %}",
)
LOUD = "{% for m in messages %}<|im_start|>{{ m.role|upper }}: {{ m.content }}<|im_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>ASSISTANT: {% endif %}"
)
QUIET = {"enable_thinking": False}


def prompt_of(renderer, **changes):
    return renderer.render(dataclasses.replace(row(), **changes)).prompt


def test_arguments_reach_the_template_and_a_rows_own_take_precedence():
    tokenizer = tiny_tokenizer(chat_template=THINKING)
    plain, quiet = Renderer(tokenizer), Renderer(tokenizer, arguments=QUIET)
    assert "<quiet>" not in prompt_of(plain)
    assert prompt_of(quiet) == prompt_of(plain, template_args='{"enable_thinking": false}')
    assert "<quiet>" in prompt_of(quiet)
    assert prompt_of(quiet, template_args='{"enable_thinking": true}') == prompt_of(plain)
    assert quiet.fingerprint != plain.fingerprint
    assert Renderer(tokenizer, arguments={}).fingerprint == plain.fingerprint


def test_arguments_that_nothing_reads_are_refused():
    with pytest.raises(
        ConfigError, match=r"doesn't read 'enable_thinking'; correct `data.template_arguments`"
    ):
        Renderer(tiny_tokenizer(), arguments=QUIET)
    with pytest.raises(ConfigError, match=r"those of a chat template, but `data.template` is plain"):
        Renderer(tiny_tokenizer(), template="plain", arguments=QUIET)


def test_a_file_takes_the_place_of_the_tokenisers_template(tmp_path):
    tokenizer, file = tiny_tokenizer(), tmp_path / "loud.jinja"
    file.write_text(LOUD)
    loud = Renderer(tokenizer, template=str(file))
    assert prompt_of(loud) == "<|im_start|>USER: Hi<|im_end|><|im_start|>ASSISTANT: "
    assert tokenizer.chat_template == CHATML
    before = loud.fingerprint
    file.write_text(LOUD + " ")
    assert before not in (
        Renderer(tokenizer).fingerprint,
        Renderer(tokenizer, template=str(file)).fingerprint,
    )
    with pytest.raises(
        ConfigError, match=r"or a file with a chat template, got 'chta' .*did you mean 'chat'"
    ):
        PreferenceDataModule(train="rows.jsonl", template="chta")


def test_the_cache_and_references_of_the_same_tokeniser_go_along(tmp_path, tiny_model):
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(number) for number in range(3)])
    tokenizer, prints, prompts = tiny_tokenizer(chat_template=THINKING), [], []
    for arguments in (None, QUIET, None):
        data = PreferenceDataModule(
            train=rows,
            template_arguments=arguments,
            cache_dir=str(tmp_path / "cache"),
            max_prompt_length=None,
        )
        run = trainer(tmp_path, max_steps=1)
        run.fit(Recorder(tokenizer=tokenizer), data)
        prints.append(data.datasets["train"].fingerprint)
        prompts.append(data.datasets["train"].batch([0]).trees["plain"].prompt_lengths[0])
    assert prints[0] == prints[2] != prints[1]
    assert prompts[0] == prompts[2] < prompts[1]
    reference = FrozenModel(model=PolicySpec(name="any"))
    reference._renderer = Renderer(tokenizer)
    assert reference._reads_as(Renderer(tokenizer, arguments=QUIET))
    assert not reference._reads_as(
        Renderer(tiny_tokenizer(vocab_size=300, chat_template=THINKING), arguments=QUIET)
    )
