"""Judges that run models, against plain transformers."""

import dataclasses

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from pl_prefopt.errors import ConfigError, RunError
from pl_prefopt.judges import (
    Exemplar,
    FollowUpLikelihood,
    ImplicitReward,
    JudgedRow,
    LogProbNorm,
    QualityScore,
    Rule,
    SequenceClassifier,
    StrongOverWeak,
)
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message
from pl_prefopt.views import QUALITY_TEXT
from tests.support import CHATML, save_tiny_model, tiny_tokenizer

USER = "Please write a short answer: what is a fox?"
ANSWERS = ("The quick brown fox jumps over the lazy dog.", "No.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / name, seed=seed) for seed, name in enumerate(("policy", "reference"))]


@pytest.fixture(scope="module")
def specs(folders):
    return [PolicySpec(name=str(folder)) for folder in folders]


def row(*texts, prompt=USER, context=""):
    return JudgedRow(
        prompt=(Message("user", prompt),),
        responses=tuple((Message("assistant", text),) for text in texts),
        context=context,
    )


def plain(folder, dialogue, answer):
    """The log-probs of an answer's tokens, its end token included, as anybody would compute them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
    return log_probs_after(model, tokenizer, prompt, f"{answer}<|im_end|>")


def log_probs_after(model, tokenizer, prompt, text):
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(prompt + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[0, 1:, None])[start - 1 :, 0]


def user(text):
    return [{"role": "user", "content": text}]


def test_implicit_rewards_are_those_of_plain_transformers(folders, specs):
    expected = [
        plain(folders[0], user(USER), a).sum() - plain(folders[1], user(USER), a).sum() for a in ANSWERS
    ]
    with ImplicitReward(*specs, beta=0.5) as judge:
        rows = [row(*ANSWERS), row("Yes."), row(*ANSWERS)]
        first, _, again = judge.verdicts(rows)
    assert first.scores == pytest.approx([0.5 * float(one) for one in expected], abs=1e-4)
    assert again.scores == pytest.approx(first.scores, abs=1e-5)
    alone = ImplicitReward(specs[0], None, average=True).judge([row(*ANSWERS)])[0]
    means = [float(plain(folders[0], user(USER), a).mean()) for a in ANSWERS]
    assert alone.scores == pytest.approx(means, abs=1e-4)
    with LogProbNorm(specs[0]) as judge:
        (norms,) = judge.judge([row(*ANSWERS)])
    expected = [-float(plain(folders[0], user(USER), a).norm()) for a in ANSWERS]
    assert norms.scores == pytest.approx(expected, abs=1e-4)


def test_the_quality_score_is_an_implicit_reward_under_the_paper_s_prompt(folders, specs):
    asked = user(f"{QUALITY_TEXT} {USER}")
    expected = [float(plain(folders[0], asked, a).sum() - plain(folders[1], asked, a).sum()) for a in ANSWERS]
    assert QualityScore(*specs).judge([row(*ANSWERS)])[0].scores == pytest.approx(expected, abs=1e-4)


def test_dr_sow_customises_the_strong_model_only(folders, specs):
    judge = StrongOverWeak(
        *specs, instruction="Be safe.", exemplars=[Exemplar(prompt="Hi", response="Hello.")]
    )
    (verdict,) = judge.judge([row(*ANSWERS, context="Be brief.")])
    customised = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        *user(f"Be safe.\n\nBe brief.\n\n{USER}"),
    ]
    expected = [
        plain(folders[0], customised, a).sum() - plain(folders[1], user(USER), a).sum() for a in ANSWERS
    ]
    assert verdict.scores == pytest.approx([float(one) for one in expected], abs=1e-4)


def test_dr_sow_is_antisymmetric_and_zero_for_equal_models(specs):
    strong, weak = specs
    (there,), (back,) = (
        judge.judge([row(*ANSWERS)]) for judge in (StrongOverWeak(strong, weak), StrongOverWeak(weak, strong))
    )
    assert there.scores == pytest.approx([-one for one in back.scores], abs=1e-6)
    assert StrongOverWeak(strong, strong).judge([row(*ANSWERS)])[0].scores == (0.0, 0.0)


def test_follow_ups_are_the_user_s_next_turn(folders, specs):
    good, bad = ["That makes perfect sense!", "Thank you."], ["Sorry, I cannot follow."]
    (verdict,) = FollowUpLikelihood(specs[0], good, bad).judge([row(*ANSWERS)])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    model = AutoModelForCausalLM.from_pretrained(folders[0]).eval()

    def mean(answer, text):
        dialogue = [*user(USER), {"role": "assistant", "content": answer}]
        head = tokenizer.apply_chat_template(dialogue, tokenize=False) + "<|im_start|>user\n"
        return float(log_probs_after(model, tokenizer, head, text).mean())

    expected = [(mean(a, good[0]) + mean(a, good[1])) / 2 - mean(a, bad[0]) for a in ANSWERS]
    assert verdict.scores == pytest.approx(expected, abs=1e-4)
    (swapped,) = FollowUpLikelihood(specs[0], bad, good).judge([row(*ANSWERS)])
    assert swapped.scores == pytest.approx([-one for one in verdict.scores], abs=1e-6)
    assert FollowUpLikelihood(specs[0], good, good).judge([row("Yes.")])[0].scores == pytest.approx(
        [0], abs=1e-6
    )


def test_a_response_that_is_too_long_has_no_score(specs):
    (verdict,) = ImplicitReward(*specs).judge([row("No.", "fox " * 600)])
    assert verdict.scores[0] is not None
    assert verdict.scores[1] is None
    assert "takes at most 512 tokens" in verdict.problems[0]


def classifier(folder, labels=1, *, pad=True):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=4 if pad else None,
        num_labels=labels,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "how", ["padded", "without a padding token", "exported by prefopt", "exported as plain text"]
)
def test_classifiers_score_as_plain_transformers(tmp_path, how):
    name = classifier(tmp_path / "reward", pad=how != "without a padding token")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    expected = []
    for answer in ANSWERS:
        dialogue = [*user(USER), {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
        if how == "exported by prefopt":  # its last token is the end token, not the line break after it
            (tmp_path / "reward" / "reward_model.json").write_text("{}")
            text = text.removesuffix("\n")
        if how == "exported as plain text":  # it has a chat template, but was trained without
            (tmp_path / "reward" / "reward_model.json").write_text('{"template": "plain"}')
            text = f"User: {USER}\n\nAssistant: {answer}{tokenizer.eos_token}"
        with torch.no_grad():
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            expected.append(float(model(**inputs).logits[0, 0]))
    with SequenceClassifier(name) as judge:
        before = judge.fingerprint()
        assert judge.judge([row(*ANSWERS)])[0].scores == pytest.approx(expected, abs=1e-5)
        assert judge.judge([row("fox " * 600)])[0].scores == (None,)
        assert judge.fingerprint() == before == SequenceClassifier(name).fingerprint()


def test_a_score_is_read_behind_the_whole_conversation_where_the_template_ends_it_there(tmp_path):
    """As WorldPM's: an empty system prompt first, and ``<|endoftext|>`` after the last turn."""
    name = classifier(tmp_path / "reward")
    tokenizer = tiny_tokenizer()
    empty = "<|im_start|>system\n<|im_end|>\n"
    tokenizer.chat_template = f"{empty}{CHATML}{{% if not add_generation_prompt %}}<|endoftext|>{{% endif %}}"
    tokenizer.save_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    turns = f"<|im_start|>user\n{USER}<|im_end|>\n<|im_start|>assistant\n{ANSWERS[1]}<|im_end|>\n"
    ids = tokenizer(f"{empty}{turns}<|endoftext|>", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        states = model.model(ids).last_hidden_state[0]
        by_place = model.score(states).flatten().tolist()
    assert tokenizer.convert_ids_to_tokens(ids[0, -1].item()) == "<|endoftext|>"
    with SequenceClassifier(name) as judge:
        _, found = judge.judge([row(*ANSWERS)])[0].scores  # padded next to a longer one
    assert found == pytest.approx(by_place[-1], abs=1e-5)
    assert abs(found - by_place[-2]) > 1e-3


def test_cross_encoders_read_two_texts_and_several_outputs_need_a_name(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=None)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=2,
        pad_token_id=4,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has 2 outputs: .* from 0 to 1"):
        SequenceClassifier(str(tmp_path)).prepare()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = [float(model(**tokenizer(USER, a, return_tensors="pt")).logits[0, 1]) for a in ANSWERS]
    found = SequenceClassifier(str(tmp_path), output=1).judge([row(*ANSWERS)])[0].scores
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_language_model_is_no_classifier(folders):
    with pytest.raises(ConfigError, match=r"no weights for score\.weight, which would be random"):
        SequenceClassifier(str(folders[0])).prepare()


def odd(judged):
    return [None, float("nan")]


def test_rules_give_scores_or_none():
    verdict = Rule(f"{__name__}.odd").judge([row("a", "b")])[0]
    assert verdict.scores == (None, None)
    assert verdict.problems == ("the rule returned None", "the rule returned nan")
    with pytest.raises(RunError, match="one score for each of the 1 responses of a row, got 2"):
        Rule(odd).judge([row("a")])
    with pytest.raises(ConfigError, match="import path of a function"):
        Rule("json.JSONDecoder")


def test_arguments_of_the_chat_template_change_what_the_models_read(tmp_path):
    folders = {
        text: save_tiny_model(tmp_path / name, chat_template=text + CHATML)
        for name, text in {"asked": "{% if brief %}Be brief.\n{% endif %}", "always": "Be brief.\n"}.items()
    }
    asked, always = (PolicySpec(name=str(folder)) for folder in folders.values())
    told = ImplicitReward(asked, None, template_arguments={"brief": True})
    (expected,) = ImplicitReward(always, None).judge([row(*ANSWERS)])
    assert told.judge([row(*ANSWERS)])[0].scores == pytest.approx(expected.scores, abs=1e-5)
    without = ImplicitReward(asked, None)
    assert abs(without.judge([row(*ANSWERS)])[0].scores[0] - expected.scores[0]) > 1e-3
    assert told.fingerprint() != without.fingerprint()
    # What a row says of its template reaches the models too, and is left out by a row that says nothing.
    saying = dataclasses.replace(row(*ANSWERS), template_args='{"brief": true}')
    (own, other) = ImplicitReward(asked, None).judge([saying, row(*ANSWERS)])
    assert own.scores == pytest.approx(expected.scores, abs=1e-5)
    assert other.scores == pytest.approx(without.judge([row(*ANSWERS)])[0].scores, abs=1e-5)


def test_arguments_of_the_chat_template_reach_classifiers(tmp_path):
    name = classifier(tmp_path / "reward")
    template = tmp_path / "reward" / "chat_template.jinja"
    template.write_text("Be brief.\n" + CHATML)
    (expected,) = SequenceClassifier(name).judge([row(*ANSWERS)])
    template.write_text("{% if brief %}Be brief.\n{% endif %}" + CHATML)
    plain, told = SequenceClassifier(name), SequenceClassifier(name, template_arguments={"brief": True})
    assert told.judge([row(*ANSWERS)])[0].scores == pytest.approx(expected.scores, abs=1e-6)
    assert abs(plain.judge([row(*ANSWERS)])[0].scores[0] - expected.scores[0]) > 1e-4
    assert told.fingerprint() != plain.fingerprint()
    with pytest.raises(ConfigError, match="`template_arguments` with `template: chat` only"):
        SequenceClassifier(name, template="pair", template_arguments={"brief": True}).prepare()
