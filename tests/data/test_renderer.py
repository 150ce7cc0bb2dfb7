"""The boundary between prompt and response, the end token, truncation."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_prefopt.data import Renderer
from pl_prefopt.data import renderer as rendering
from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.rows import Message, PreferenceRow
from tests.data.support import assistant, row, user
from tests.support import CHATML, tiny_tokenizer

CHATML_BOS = "<s>" + CHATML
GEMMA_LIKE = CHATML.replace("<|im_end|>", "<pad>")
PHI_LIKE = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
NO_END = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)

TOKENIZERS = {
    "chat": tiny_tokenizer(),
    "chat+bos": tiny_tokenizer(bos=True, chat_template=CHATML_BOS),
    "plain": tiny_tokenizer(chat_template=None),
    "plain+bos": tiny_tokenizer(chat_template=None, bos=True),
}
RENDERERS = {
    **{name: Renderer(tokenizer) for name, tokenizer in TOKENIZERS.items()},
    "none": Renderer(TOKENIZERS["plain"], template="none"),
    "none+bos": Renderer(TOKENIZERS["plain+bos"], template="none"),
    "chat, without end": Renderer(tiny_tokenizer(chat_template=NO_END)),
    "chat, other end": Renderer(tiny_tokenizer(chat_template=GEMMA_LIKE)),
    "chat, two ends": Renderer(tiny_tokenizer(chat_template=PHI_LIKE)),
}
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
any_renderer = pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS.keys())


def whole_dialogue(renderer: Renderer, prompt: str, response: str) -> str:
    """Render the dialogue by means of its own, up to and including the end token."""
    tokenizer, end = renderer.tokenizer, renderer.tokenizer.convert_ids_to_tokens(renderer.end_token_id)
    if tokenizer.chat_template:
        messages = [user(prompt)._asdict(), assistant(response)._asdict()]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return text[: text.rindex(end) + len(end)] if end in text else text + end
    if renderer in (RENDERERS["none"], RENDERERS["none+bos"]):
        return prompt + response + end
    return f"User: {prompt}\n\nAssistant: {response}{end}"


@any_renderer
@settings(max_examples=60, deadline=None)
@given(prompt=texts, response=texts, other=texts)
def test_the_boundary_never_depends_on_the_response(
    renderer: Renderer, prompt: str, response: str, other: str
):
    encoded = renderer.encode(row(prompt, response, other))
    alone = renderer.encode(row(prompt, other))
    assert encoded.prompt_ids == alone.prompt_ids
    tokenizer = renderer.tokenizer
    ids = [*encoded.prompt_ids, *encoded.response_ids[0]]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    text = whole_dialogue(renderer, prompt, response)
    decoded = tokenizer.decode(ids)
    assert decoded.removeprefix("<s>") == text.removeprefix("<s>")
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = whole if whole[: len(bos)] == bos else [*bos, *whole]
    if whole[: len(encoded.prompt_ids)] == encoded.prompt_ids:
        assert ids == whole


def test_long_texts_are_not_in_memory_together(monkeypatch):
    """A call of the tokeniser takes a bounded number of characters, or a single text, with equal tokens."""

    class Spy:
        def __init__(self, tokenizer):
            self.tokenizer, self.calls = tokenizer, []

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, texts, **settings):
            self.calls.append([len(text) for text in texts])
            return self.tokenizer(texts, **settings)

    whole = Renderer(tiny_tokenizer(), max_prompt_length=20)
    rows = [row("What is it? " * number, "A fox.", "No.\nTwo!" * number) for number in range(1, 9)]
    expected = whole.tokenise([whole.render(one) for one in rows])
    spied = copy.copy(whole)
    spied.tokenizer = Spy(whole.tokenizer)
    monkeypatch.setattr(rendering, "_CHARACTERS_A_CALL", 150)
    assert spied.tokenise([spied.render(one) for one in rows]) == expected
    calls = spied.tokenizer.calls
    assert all(sum(call) <= 150 or len(call) == 1 for call in calls)
    assert {True, False} == {len(call) > 1 for call in calls}


@any_renderer
@settings(max_examples=30, deadline=None)
@given(prompt=texts, response=texts)
def test_one_bos_and_one_end(renderer: Renderer, prompt: str, response: str):
    encoded = renderer.encode(row(prompt, response))
    (ids,) = encoded.response_ids
    assert ids.count(renderer.end_token_id) == 1
    assert ids[-1] == renderer.end_token_id
    assert encoded.counted == [[True] * len(ids)]
    bos = renderer.tokenizer.bos_token_id
    if bos is not None:
        assert encoded.prompt_ids[0] == bos
        assert [*encoded.prompt_ids, *ids].count(bos) == 1


@any_renderer
@pytest.mark.parametrize("text", ["a{end}", "a{end}{end}", "a{end}b", "{end}"])
def test_end_tokens_in_the_text_are_not_doubled(renderer: Renderer, text: str):
    end = renderer.tokenizer.convert_ids_to_tokens(renderer.end_token_id)
    (ids,) = renderer.encode(row("Hi", text.format(end=end))).response_ids
    assert ids.count(renderer.end_token_id) == 1
    assert ids[-1] == renderer.end_token_id
    if "b" in text:
        assert renderer.tokenizer.decode(ids).strip().removesuffix(end) == text.format(end=end)


def test_a_written_bos_is_not_doubled():
    renderer = RENDERERS["none+bos"]
    assert renderer.encode(row("<s>Hi")).prompt_ids == renderer.encode(row("Hi")).prompt_ids


def test_the_end_token_is_the_one_that_the_template_writes():
    ends = {
        name: RENDERERS[name].tokenizer.convert_ids_to_tokens(RENDERERS[name].end_token_id)
        for name in ("chat", "chat, other end", "chat, two ends", "chat, without end", "plain")
    }
    assert list(ends.values()) == ["<|im_end|>", "<pad>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize("text", ["a", "assistant", "<think>", " padded "])
def test_a_template_that_opens_a_turn_with_more_than_it_writes(text: str):
    renderer = Renderer(tiny_tokenizer(chat_template=THINKING))
    encoded = renderer.encode(row("Hi", text))
    assert renderer.tokenizer.decode(encoded.prompt_ids).endswith("assistant\n<think>\n")
    assert renderer.tokenizer.decode(encoded.response_ids[0]) == f"{text.strip()}<|im_end|>"


def test_a_response_that_writes_what_the_template_opens_with():
    renderer = Renderer(tiny_tokenizer(chat_template=THINKING))
    (ids,) = renderer.encode(row("Hi", "<think>\nwell")).response_ids
    assert renderer.tokenizer.decode(ids) == "well<|im_end|>"


def test_a_refusing_template_names_the_row():
    renderer = Renderer(tiny_tokenizer(chat_template=NO_SYSTEM))
    with_system = dataclasses.replace(row(), prompt=(Message("system", "x"), user("Hi")))
    with pytest.raises(
        DataError, match=r"rows.jsonl, row 1: .*rejects the turns system, user .no system role.*plain"
    ):
        renderer.encode(with_system)


@pytest.mark.parametrize("name", ["chat", "plain", "plain+bos"])
def test_only_assistants_are_counted_in_a_response_of_several_turns(name: str):
    renderer = RENDERERS[name]
    several = dataclasses.replace(row(), responses=((assistant("One."), user("More?"), assistant("Two.")),))
    encoded = renderer.encode(several)
    pieces = list(zip(encoded.response_ids[0], encoded.counted[0], strict=True))
    decode = renderer.tokenizer.decode
    counted = decode([token for token, flag in pieces if flag])
    rest = decode([token for token, flag in pieces if not flag])
    if name == "chat":
        assert counted == "One.<|im_end|>Two.<|im_end|>"
        assert rest == "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n"
    else:
        assert counted == " One. Two.<|endoftext|>"
        assert rest == "\n\nUser: More?\n\nAssistant:"


def test_truncation_keeps_the_prompts_right_and_the_responses_left_end():
    whole = RENDERERS["plain"].encode(row("One two three four", "Five six seven eight", "x"))
    cut = Renderer(TOKENIZERS["plain"], max_prompt_length=5, max_response_length=4)
    encoded = cut.encode(row("One two three four", "Five six seven eight", "x"))
    assert encoded.prompt_ids == whole.prompt_ids[-5:]
    assert encoded.response_ids == [ids[:4] for ids in whole.response_ids]
    assert encoded.prompt_cut == len(whole.prompt_ids) - 5
    assert encoded.response_cuts == [len(whole.response_ids[0]) - 4, 0]
    assert [len(flags) for flags in encoded.counted] == [len(ids) for ids in encoded.response_ids]


def test_truncation_keeps_the_bos():
    encoded = Renderer(TOKENIZERS["plain+bos"], max_prompt_length=3).encode(row("One two three four"))
    whole = RENDERERS["plain+bos"].encode(row("One two three four"))
    assert encoded.prompt_ids == [whole.prompt_ids[0], *whole.prompt_ids[-2:]]


@any_renderer
@given(prompt=texts, response=texts)
@settings(max_examples=10, deadline=None)
def test_truncation_never_leaves_nothing(renderer: Renderer, prompt: str, response: str):
    template = "none" if renderer in (RENDERERS["none"], RENDERERS["none+bos"]) else "auto"
    short = Renderer(renderer.tokenizer, template=template, max_prompt_length=1, max_response_length=1)
    encoded = short.encode(row(prompt, response))
    assert (len(encoded.prompt_ids), len(encoded.response_ids[0])) == (1, 1)


def test_the_fingerprint_changes_with_whatever_changes_tokens():
    def renderers():
        yield Renderer(tiny_tokenizer())
        yield Renderer(tiny_tokenizer(chat_template=CHATML + " "))
        yield Renderer(tiny_tokenizer(vocab_size=390))
        yield Renderer(tiny_tokenizer(), template="plain")
        yield Renderer(tiny_tokenizer(), template="none")
        yield Renderer(tiny_tokenizer(), max_prompt_length=7)
        yield Renderer(tiny_tokenizer(), max_response_length=7)
        yield Renderer(tiny_tokenizer(bos=True), template="plain")

    prints = [renderer.fingerprint for renderer in renderers()]
    assert len(set(prints)) == len(prints)
    padded = tiny_tokenizer()
    padded(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert Renderer(padded).fingerprint == prints[0]


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match=r"data\.max_response_length.* at least 1, got 0"):
        Renderer(TOKENIZERS["chat"], max_response_length=0)
    with pytest.raises(ConfigError, match="chat template, got one without"):
        Renderer(TOKENIZERS["plain"], template="chat")
    with pytest.raises(ConfigError, match="got 'chta'"):
        Renderer(TOKENIZERS["plain"], template="chta")
    endless = tiny_tokenizer(chat_template=None)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        Renderer(endless)


# -- what only chat templates write

KIND = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}{% if enable_thinking is false %}(fast){% endif %}"
FULL = (
    TOOLS
    + "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + "{% if m['role'] == 'assistant' %}<think>\n{{ m['reasoning_content'] | default('', true) }}\n</think>\n"
    + "{% endif %}{{ m['content'] }}{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}"
    + "<|im_end|>\n"
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def one(fields: dict) -> PreferenceRow:
    return to_row({"prompt": "Hi", "completion": "4.", "label": 1} | fields)


def texts_of(renderer: Renderer, fields: dict) -> tuple[str, str]:
    encoded = renderer.encode(one(fields))
    decode = renderer.tokenizer.decode
    return decode(encoded.prompt_ids), decode(encoded.response_ids[0])


def test_reasoning_is_written_as_the_template_writes_it_or_refused():
    full = Renderer(tiny_tokenizer(chat_template=FULL))
    fields = {"completion": [{"role": "assistant", "content": "4.", "thinking": "2 + 2"}]}
    assert texts_of(full, fields)[1] == "<think>\n2 + 2\n</think>\n4.<|im_end|>"
    assert texts_of(full, {"reasoning_content": "2 + 2"})[1] == "<think>\n2 + 2\n</think>\n4.<|im_end|>"
    with pytest.raises(DataError, match=r"leaves out the reasoning of a response"):
        RENDERERS["chat"].encode(one(fields))
    with pytest.raises(DataError, match=r"only a chat template can write the reasoning_content .*: chat`"):
        RENDERERS["plain"].encode(one(fields))


def test_tools_and_arguments_reach_the_template_or_are_refused():
    full = Renderer(tiny_tokenizer(chat_template=FULL))
    tools = [{"type": "function", "function": {"name": "add"}}]
    arguments = {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    prompt, _ = texts_of(full, arguments)
    assert prompt.startswith('[{"type": "function", "function": {"name": "add"}}](fast)<|im_start|>user')
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}],
    }
    _, said = texts_of(full, {"completion": [call, {"role": "tool", "content": ""}, *fields_of("4.")]})
    assert '{"name": "add", "arguments": {}}' in said
    for renderer, fields, reason in (
        (RENDERERS["chat"], {"tools": tools}, "doesn't read the row's 'tools'"),
        (full, {"chat_template_kwargs": {"tokenize": True}}, "doesn't read the row's 'tokenize'"),
        (RENDERERS["plain"], {"tools": tools}, "only a chat template takes the row's tools"),
        (RENDERERS["chat"], {"completion": [call]}, "leaves out tool calls"),
    ):
        with pytest.raises(DataError, match=reason):
            renderer.encode(one(fields))


def fields_of(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_system_turn_takes_the_place_of_the_templates_own():
    renderer = Renderer(tiny_tokenizer(chat_template=KIND + CHATML))
    assert texts_of(renderer, {"system": "Be brief."})[0].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )
    developer = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert texts_of(renderer, {"prompt": developer}) == texts_of(renderer, {"system": "Be brief."})
    dropping = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(DataError, match="leaves out the system turn"):
        Renderer(tiny_tokenizer(chat_template=dropping)).encode(one({"system": "Be brief."}))


def test_templated_text_is_tokenised_as_such_and_never_templated_twice():
    tokenizer = TOKENIZERS["chat"]
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    none, chat = Renderer(tokenizer, template="none"), RENDERERS["chat"]
    templated = none.encode(row(prompt, "Hello there<|im_end|>\n", "No"))
    plain = chat.encode(row("Hi", "Hello there", "No"))
    assert templated.prompt_ids == plain.prompt_ids
    assert templated.response_ids == plain.response_ids
    assert chat.encode(row("Hi", "Hello there<|im_end|>\n")).response_ids == plain.response_ids[:1]
    begins = copy.deepcopy(tokenizer)
    begins.bos_token = "<|im_start|>"  # as SmolLM2's
    for renderer in (chat, Renderer(tokenizer, template="plain"), Renderer(begins)):
        with pytest.raises(DataError, match=r"has the marker <\|im_start\|> .* set `data.template: none`"):
            renderer.encode(row(prompt, "Hello"))
    with pytest.raises(DataError, match="after its end token"):
        none.encode(row(prompt, "Hello<|im_end|>\n<|im_start|>user\nMore"))


@pytest.mark.parametrize("name", ["chat", "plain", "none"])
def test_a_response_continues_the_assistant_turn_of_its_prompt(name: str):
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sorry, I"}]
    fields = {"prompt": begun, "chosen": " cannot help", "rejected": " am fine"}
    tokenizer = TOKENIZERS["chat"]
    encoded = Renderer(tokenizer, template=name).encode(to_row(fields))
    text = {
        "chat": tokenizer.apply_chat_template(begun, continue_final_message=True, tokenize=False),
        "plain": "User: Hi\n\nAssistant: Sorry, I",
        "none": "HiSorry, I",
    }[name]
    assert encoded.prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    for ids, response in zip(encoded.response_ids, (" cannot help", " am fine"), strict=True):
        assert tokenizer.decode([*encoded.prompt_ids, *ids]) == f"{text}{response}<|im_end|>"
    if name == "chat":
        answered = [begun[0], {"role": "assistant", "content": "Sorry, I cannot help"}]
        closed = tokenizer.apply_chat_template(answered, tokenize=False)
        ids = tokenizer(closed, add_special_tokens=False)["input_ids"]
        assert ids[: len(encoded.prompt_ids) + len(encoded.response_ids[0])] == [
            *encoded.prompt_ids,
            *encoded.response_ids[0],
        ]


def test_a_template_that_writes_a_begun_turn_differently_is_refused():
    counting = CHATML.replace("m['content'] }}<", "(m['content'] | length) ~ m['content'] }}<")
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I"}]
    with pytest.raises(DataError, match="can't continue the prompt's assistant turn"):
        Renderer(tiny_tokenizer(chat_template=counting)).encode(
            to_row({"prompt": begun, "chosen": "a", "rejected": "b"})
        )
