"""Long dialogues: the text of every turn from one rendering, where the template allows it."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from pl_prefopt.data import Renderer
from pl_prefopt.data import renderer as renderer_module
from pl_prefopt.data.renderer import with_template
from pl_prefopt.errors import DataError
from pl_prefopt.rows import Message
from tests.data.support import row
from tests.support import CHATML, tiny_tokenizer

HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LLAMA = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = 'Be kind.' %}{% endif %}"
    "{{ '<|im_start|>system\n\n' + said + '<|im_end|>' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<|im_start|>' + role + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
NUMBERED = CHATML.replace("{{ m['role'] }}", "{{ loop.index }} {{ m['role'] }}").replace(
    HEADER, "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = CHATML.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
STATE = (
    "{% set ns = namespace(last='none') %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }} after {{ ns.last }}\n"
    "{{ m['content'] }}<|im_end|>\n{% set ns.last = m['role'] %}{% endfor %}" + HEADER
)
PARTS = (
    "{% macro written(m) %}{% for word in m['content'].split() %}{{ word }}{% if not loop.last %} {% endif %}"
    "{% endfor %}{% endmacro %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ written(m) }}<|im_end|>\n{% endfor %}" + HEADER
)
AT_ONCE = {
    "chatml": CHATML,
    "llama": LLAMA,
    "gemma": GEMMA,
    "generation": GENERATION,
    "state": STATE.replace("{{ m['role'] }} after {{ ns.last }}", "{{ m['role'] }}"),
    "parts": PARTS,
}

# What the last turn, the number of turns or later turns change.
STRIPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}"
    "<|im_end|>\n{% endfor %}" + HEADER
)
LAST_QUERY = (
    "{% set ns = namespace(at=-1) %}{% for m in messages[::-1] %}{% if ns.at < 0 and m['role'] == 'user' %}"
    "{% set ns.at = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.index0 > ns.at %}"
    "{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
    + HEADER
)
MERGES = (
    "{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1]['role'] == m['role'] %}\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{% endif %}{{ m['content'] }}"
    "{% if loop.index0 + 1 < messages | length and messages[loop.index0 + 1]['role'] == m['role'] %}"
    "{% else %}<|im_end|>\n{% endif %}{% endfor %}" + HEADER
)
COUNTS = "{{ messages | length }} turns" + CHATML
TAIL = CHATML + "{% if messages[-1]['content'] | length > 12 %}(long){% endif %}"
STATE_AT_END = STATE.replace(" after {{ ns.last }}", "") + "{% if ns.last == 'none' %}no turns{% endif %}"
IN_A_MACRO = "{% macro all(ms) %}" + CHATML.replace(HEADER, "") + "{% endmacro %}{{ all(messages) }}" + HEADER
CAPTURED = "{% set text %}" + CHATML.replace(HEADER, "") + "{% endset %}{{ text }}" + HEADER
PASSES = "{% for turns in [messages] %}" + CHATML.replace("in messages", "in turns") + "{% endfor %}"
SKIPS = CHATML.replace("in messages", "in messages if m['content'] != 'b'")
SECOND_LAST = CHATML.replace("<|im_end|>", "{% if loop.nextitem is defined %}{% endif %}<|im_end|>")
THINKING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}").replace(
    HEADER, "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ENDS = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
ONE_BY_ONE = {
    "numbers with the header": NUMBERED,
    "strips reasoning": STRIPS_REASONING,
    "last query": LAST_QUERY,
    "merges": MERGES,
    "counts": COUNTS,
    "tail": TAIL,
    "state": STATE,
    "state at the end": STATE_AT_END,
    "in a macro": IN_A_MACRO,
    "captured": CAPTURED,
    "passes": PASSES,
    "skips": SKIPS,
    "second last": SECOND_LAST,
    "thinking": THINKING,
    "ends": ENDS,
    "breaks": CHATML.replace("<|im_end|>\n", "<|im_end|>\n{% if loop.index > 8 %}{% break %}{% endif %}"),
    "sequence": CHATML + "{% if messages is sequence %} {% endif %}",
    "json": "{{ messages | tojson }}" + CHATML,
}
TOKENIZER = tiny_tokenizer(bos=True)
TEXTS = (
    "a",
    "b",
    " padded ",
    "One. Two!",
    "<think>\nwell\n</think>\n\nyes, a long one",
    "a<|im_end|>b",
    "naïve\n\n",
)


def dialogues(count: int):
    """Rows of which one response has many turns."""
    for seed in range(count):
        pick = random.Random(seed)
        roles = ["assistant"]
        while len(roles) < 10:
            roles.append(pick.choice(("user", "assistant", "tool")) if seed % 3 == 0 else "user")
            roles.append("assistant")
        system = [Message("system", "Be brief.")] * (seed % 2)
        said = tuple(Message(role, pick.choice(TEXTS[: 4 if seed < 4 else None])) for role in roles)
        yield dataclasses.replace(
            row(), prompt=(*system, Message("user", "Hi")), responses=(said, (Message("assistant", "x"),))
        )


def outcome(renderer: Renderer, one):
    try:
        return renderer.render(one)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", [*AT_ONCE, *ONE_BY_ONE, "plain", "none"])
def test_turns_from_one_rendering_are_those_of_turn_by_turn_rendering(name: str, monkeypatch):
    template = (AT_ONCE | ONE_BY_ONE).get(name)
    renderer = Renderer(with_template(TOKENIZER, template), template="chat" if template else name)
    at_once = itertools.count()
    found = renderer_module._turns_at_once

    def counted(*arguments):
        turns = found(*arguments)
        next(at_once) if turns is not None else None
        return turns

    monkeypatch.setattr(renderer_module, "_turns_at_once", counted)
    rows = list(dialogues(6))
    fast = [outcome(renderer, one) for one in rows]
    monkeypatch.setattr(renderer_module, "_FEW_TURNS", 10**9)
    assert fast == [outcome(renderer, one) for one in rows]
    assert (next(at_once) > 1) == (name not in ONE_BY_ONE), (
        "templates that look ahead are rendered turn by turn"
    )


def test_a_template_renders_a_long_dialogue_a_few_times():
    renderer = Renderer(tiny_tokenizer())
    rendered = []
    render = renderer._template._render
    renderer._template._render = lambda dialogue, **options: (
        rendered.append(len(dialogue)) or render(dialogue, **options)
    )
    said = tuple(Message(("assistant", "user")[number % 2], f"Turn {number}.") for number in range(101))
    renderer.render(dataclasses.replace(row(), responses=(said,)))
    assert rendered == [1, 102, 101]
