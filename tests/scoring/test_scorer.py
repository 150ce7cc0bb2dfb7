"""The scorer against a model asked for one unpadded sequence at a time."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, Gemma2Config, GraniteConfig

from pl_prefopt.scoring import Scorer, heads
from pl_prefopt.scoring.layouts import TreeLayout
from pl_prefopt.types import TokenTree
from tests.scoring.architectures import CONFIGS, VOCABULARY, build

PROMPTS = [5, 1, 3]
RESPONSES = [[4, 1, 2], [1], [3, 6]]


def ragged_tree(prompts=PROMPTS, responses=RESPONSES, *, seed: int = 0) -> TokenTree:
    """Random tokens of the given lengths; a prompt with fewer responses has absent ones."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = max(map(len, responses)), max(map(max, responses))
    prompt_mask = torch.tensor([[p < n for p in range(max(prompts))] for n in prompts])
    response_mask = torch.zeros(len(prompts), count, longest, dtype=torch.bool)
    for row, lengths in enumerate(responses):
        for number, length in enumerate(lengths):
            response_mask[row, number, :length] = True
    return TokenTree(
        prompt_ids=torch.randint(3, VOCABULARY, prompt_mask.shape, generator=generator) * prompt_mask,
        prompt_mask=prompt_mask,
        response_ids=torch.randint(3, VOCABULARY, response_mask.shape, generator=generator) * response_mask,
        response_mask=response_mask,
        counted_mask=response_mask.clone(),
    )


def one_by_one(model: nn.Module, tree: TokenTree) -> torch.Tensor:
    """Sums of log-probs [B, R] from plain forwards of unpadded sequences."""
    batch, count = tree.response_mask.shape[:2]
    sums = torch.zeros(batch, count)
    for row in range(batch):
        prompt = tree.prompt_ids[row][tree.prompt_mask[row]]
        for number in range(count):
            mask = tree.response_mask[row, number]
            if not mask.any():
                continue
            response = tree.response_ids[row, number][mask]
            logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
            per_token = logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]
            sums = sums.index_put(
                (torch.tensor(row), torch.tensor(number)),
                (per_token * tree.counted_mask[row, number][mask]).sum(),
            )
    return sums


@pytest.mark.parametrize("layout", ["auto", "plain"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_equal_unpadded_sequences(name, attention, layout):
    model, tree = build(name, attention), ragged_tree()
    with torch.no_grad():
        torch.testing.assert_close(
            Scorer(layout)(model, tree).sum, one_by_one(model, tree), atol=2e-4, rtol=1e-5
        )


def gradients(model, *ways):
    """Gradients of Σ s², s the sums of log-probs in each way, as one vector a way."""
    for sums in (way() for way in ways):
        model.zero_grad()
        sums.square().sum().backward()
        yield torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("trained", ["all", "all but the head", "adapter"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_unpadded_sequences(name, trained, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    model, tree = build(name), ragged_tree()
    if trained == "all but the head":
        model.get_output_embeddings().requires_grad_(requires_grad=False)
    if trained == "adapter":
        torch.manual_seed(1)
        settings = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    found = gradients(
        model,
        lambda: Scorer("auto")(model, tree).sum,
        lambda: Scorer("plain")(model, tree).sum,
        lambda: one_by_one(model, tree),
    )
    shared, plain, expected = found
    scale = expected.abs().max()
    assert scale > 1
    for gradient in (shared, plain):
        assert (gradient - expected).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("setting", [{"final_logit_softcapping": 2.0}, {"logits_scaling": 3.0}])
def test_bent_and_scaled_logits(setting):
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads_of = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    kind = Gemma2Config if "final_logit_softcapping" in setting else GraniteConfig
    extra = {"head_dim": 8, "sliding_window": 512} if kind is Gemma2Config else {}
    model = AutoModelForCausalLM.from_config(kind(**common, **heads_of, **extra, **setting)).eval()
    tree, scorer = ragged_tree(), Scorer()
    with torch.no_grad():
        torch.testing.assert_close(scorer(model, tree).sum, one_by_one(model, tree), atol=2e-4, rtol=1e-5)
    assert isinstance(scorer._head, heads.ChunkedHead)


def test_a_head_that_cannot_be_run_alone_is_found_out():
    class Shifted(nn.Module):
        """Adds to its logits what its output embeddings don't know of."""

        def __init__(self):
            super().__init__()
            self.inner = build("llama")
            self.config = self.inner.config
            self.base_model = self.inner.model

        def get_output_embeddings(self):
            return self.inner.lm_head

        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
            out.logits = out.logits + torch.arange(VOCABULARY) / 10
            return out

    model, tree = Shifted(), ragged_tree()
    with pytest.warns(UserWarning, match="other numbers with its head run in pieces"):
        found = Scorer()(model, tree).sum
    given = {"attention_mask": None, "position_ids": None, "use_cache": False}
    expected = one_by_one(lambda input_ids: model(input_ids=input_ids, **given), tree)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-5)


def test_only_counted_tokens_count():
    model, tree = build("llama"), ragged_tree()
    tree.counted_mask[0, 0, 1] = False
    with torch.no_grad():
        scored = Scorer()(model, tree)
        torch.testing.assert_close(scored.sum, one_by_one(model, tree), atol=2e-4, rtol=1e-5)
    assert scored.length[0].tolist() == [3, 1, 2]
    assert scored.sum[1].tolist()[1:] == [0.0, 0.0]
    torch.testing.assert_close(scored.mean[0], scored.sum[0] / torch.tensor([3.0, 1.0, 2.0]))


def test_the_content_of_padding_does_not_matter():
    model, tree = build("llama"), ragged_tree()
    other = ragged_tree()
    other.response_ids = torch.where(other.response_mask, other.response_ids, VOCABULARY - 1)
    other.prompt_ids = torch.where(other.prompt_mask, other.prompt_ids, VOCABULARY - 1)
    for layout in ("tree", "plain"):
        with torch.no_grad():
            assert torch.equal(Scorer(layout)(model, tree).sum, Scorer(layout)(model, other).sum)


def test_the_tree_is_taken_where_the_model_supports_it():
    scorer = Scorer()
    scorer(build("llama"), ragged_tree())
    assert isinstance(scorer._shared, TreeLayout)


def test_a_model_without_position_ids_falls_back_and_says_so():
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = BloomForCausalLM(config).eval()
    tree = ragged_tree()
    with pytest.warns(UserWarning, match="BloomForCausalLM"), torch.no_grad():
        scored = Scorer()(model, tree)
    torch.testing.assert_close(scored.sum, one_by_one(model, tree), atol=2e-4, rtol=1e-5)


def test_a_model_that_ignores_the_mask_is_found_out():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("llama")
            self.config = self.inner.config

        def get_output_embeddings(self):
            return self.inner.lm_head

        def base_model(self, attention_mask, **inputs):
            flat = attention_mask if attention_mask.dim() == 2 else None
            return self.inner.model(attention_mask=flat, **inputs)

        def forward(self, attention_mask, position_ids, **inputs):
            flat = attention_mask if attention_mask.dim() == 2 else None
            return self.inner(attention_mask=flat, position_ids=position_ids, **inputs)

    with pytest.warns(UserWarning, match="other numbers"):
        Scorer()(Careless(), ragged_tree())


def test_bfloat16_models_give_float32_log_probs_close_to_their_own():
    model, tree = build("llama"), ragged_tree()
    with torch.no_grad():
        exact = Scorer()(model, tree).sum
        rough = Scorer()(model.to(torch.bfloat16), tree).sum
    assert rough.dtype == torch.float32
    present = tree.response_mask.any(-1)
    assert (rough - exact)[present].abs().max() < 0.05 * exact[present].abs().max()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("window_4")])
def test_sliding_windows_share_their_prompts_too(name):
    model, tree, scorer = build(name), ragged_tree(), Scorer()
    with torch.no_grad():
        scorer(model, tree)
        wide = build(name)
        for layer in wide.modules():
            if getattr(layer, "sliding_window", None):
                layer.sliding_window = 512
        wide.config.sliding_window = 512
        gap = (one_by_one(model, tree) - one_by_one(wide, tree)).abs().max()
    assert isinstance(scorer._shared, TreeLayout)
    assert gap > 0.01, "the window must matter for these lengths, or the test shows nothing"
