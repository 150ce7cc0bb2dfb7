"""A response's log-prob is its own, whatever else is in the batch: what can't be scored so is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

from pl_prefopt.errors import ConfigError
from pl_prefopt.scoring import Scorer
from pl_prefopt.scoring.layouts import SingleLayout
from pl_prefopt.scoring.probe import probing
from tests.scoring.architectures import CONFIGS, ODD, VOCABULARY, build
from tests.scoring.test_scorer import gradients, one_by_one, ragged_tree

CPU = torch.device("cpu")
PROMPTS, RESPONSES = [24, 4, 7], [[4, 1, 9], [3], [2, 12]]
"""Longer than the windows and the thresholds of the odd architectures, and some shorter."""

RUNS_ON = {
    "mistral_window_20": "tree",
    "gpt_neo_window_20": "plain",
    "moshi_window_20": "tree",
    "gpt_bigcode": "tree",
    "roberta": "plain",
    "opt": "tree",
    "bart": "plain",
    "roformer": "plain",
    "rwkv": "plain",
    "recurrent_gemma": "plain",
    "llama4": "plain",
    "mixtral": "tree",
    "phi3_longrope": "tree",
    "doge": "single",
}


def layout_of(scorer: Scorer) -> str:
    if scorer._shared is not None:
        return "tree"
    return "single" if isinstance(scorer._plain, SingleLayout) else "plain"


def test_every_odd_architecture_is_expected_on_some_layout():
    assert RUNS_ON.keys() == ODD.keys()


@pytest.mark.filterwarnings("ignore:Each prompt is", "ignore:All logits", "ignore:Responses are scored one")
@pytest.mark.parametrize("layout", ["auto", "plain"])
@pytest.mark.parametrize("name", ODD)
def test_a_response_does_not_depend_on_its_batch(name, layout):
    """Values and gradients in a ragged batch equal those of each response alone, unpadded."""
    model, scorer = build(name), Scorer(layout)
    tree = ragged_tree(PROMPTS, RESPONSES, common=2, seed=1)
    expected = one_by_one(model, tree)
    torch.testing.assert_close(scorer(model, tree).sum, expected, atol=5e-4, rtol=1e-5)
    assert expected.std() > 1, "log-probs that are all alike show nothing"
    assert layout_of(scorer) == (
        RUNS_ON[name] if layout == "auto" else RUNS_ON[name].replace("tree", "plain")
    )
    if name == "rwkv":
        return  # transformers can't compute its gradient on a CPU
    found, alone = gradients(model, lambda: scorer(model, tree).sum, lambda: one_by_one(model, tree))
    assert (found - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("name", ["gpt_neo_window_20", "mistral_window_20", "moshi_window_20"])
def test_windows_are_as_long_after_a_probe_as_before(name):
    model = build(name)
    before = copy.deepcopy((model.config.to_dict(), dict(model.named_buffers())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Scorer().prefix_cache(model, CPU)
    assert model.config.to_dict() == before[0]
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, before[1][key])


def test_a_window_in_the_configuration_alone_is_not_applied():
    model, scorer = build("moshi_window_20"), Scorer()
    with torch.no_grad():
        scorer(model, ragged_tree())
    assert scorer._shared is not None
    assert scorer._shared.masks == "full"


class HiddenWindow(nn.Module):
    """Sees twelve columns, by a number that nothing can reach."""

    def __init__(self, declared: int | None):
        super().__init__()
        self.inner = build("llama")
        self.config = self.inner.config
        if declared is not None:
            self.config.window_size = declared

    def get_output_embeddings(self):
        return self.inner.lm_head

    def base_model(self, input_ids, attention_mask=None, position_ids=None, **inputs):
        width = input_ids.shape[1]
        band = torch.ones(width, width).tril().triu(-11).bool()
        hidden = torch.zeros(()).where(band, torch.finfo(torch.float32).min)[None, None]
        mask = hidden if attention_mask is None else torch.minimum(hidden, attention_mask)
        return self.inner.model(input_ids, attention_mask=mask, position_ids=position_ids, **inputs)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        out = self.base_model(input_ids, attention_mask, position_ids, use_cache=use_cache)
        out.logits = self.inner.lm_head(out.last_hidden_state)
        return out


def test_rows_are_lengthened_for_a_window_that_cannot_be_shortened():
    model, tree = HiddenWindow(declared=12), ragged_tree(PROMPTS, RESPONSES)
    with pytest.warns(UserWarning, match="different log-probs with a tree-shaped mask"), torch.no_grad():
        found = Scorer()(model, tree).sum
    torch.testing.assert_close(found, one_by_one(model, tree).detach(), atol=2e-4, rtol=1e-5)


def test_a_window_too_long_to_be_probed_is_a_reason_for_plain_rows():
    model = HiddenWindow(declared=5000)
    model.config.max_position_embeddings = 10_000
    with pytest.warns(UserWarning, match="a window of 5000 tokens, which is too long to be probed"):
        Scorer()(model, ragged_tree())


def encoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if kind == "xlnet":
        config = transformers.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64)
    else:
        config = transformers.BertConfig(**sizes, num_attention_heads=4, initializer_range=0.3)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("layout", ["auto", "tree", "plain"])
@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_that_looks_ahead_is_refused(kind, layout):
    scorer, model = Scorer(layout), encoder(kind)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no causal language model: with other tokens behind it"):
            scorer(model, ragged_tree())


def test_a_tree_that_is_asked_for_is_probed_too():
    with pytest.raises(ConfigError, match=r"model\.layout is 'tree', but GPTNeoForCausalLM masks by columns"):
        Scorer("tree")(build("gpt_neo_window_20"), ragged_tree())


def test_a_model_that_takes_more_than_tokens_is_refused():
    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("llama")
            self.config = self.inner.config

        def forward(self, input_ids, pixel_values, use_cache=False):
            raise AssertionError

    with pytest.raises(ConfigError, match="Pictures gives no log-probs for token ids alone"):
        Scorer()(Pictures(), ragged_tree())


@pytest.mark.parametrize("name", CONFIGS)
def test_what_rounding_explains_is_measured(name):
    """Of a bfloat16 model, less than a nat; of a float32 one, next to nothing. Both run on trees."""
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.6)):
        model, scorer = build(name).to(dtype), Scorer()
        with probing(model, CPU) as probe:
            assert probe.tolerance < most
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("error", message="Each prompt|All logits|Responses are")
            scorer(model, ragged_tree())
        assert layout_of(scorer) == "tree"
