"""The scorer against a model asked for one unpadded sequence at a time."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    GraniteConfig,
)

from pl_prefopt.data.collate import align_with_plain
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.scoring import Scorer, heads, output_layers, packing, prefix_cache
from pl_prefopt.scoring.layouts import TreeLayout
from pl_prefopt.types import TokenTree
from tests.scoring.architectures import CONFIGS, ODD, VOCABULARY, build

PROMPTS = [5, 1, 3]
RESPONSES = [[4, 1, 2], [1], [3, 6]]


def ragged_tree(prompts=PROMPTS, responses=RESPONSES, *, common: int = 0, seed: int = 0) -> TokenTree:
    """Random tokens of the given lengths; a prompt with fewer responses has absent ones.

    All prompts begin with ``common`` tokens of the same.
    """
    generator = torch.Generator().manual_seed(seed)
    count, longest = max(map(len, responses)), max(map(max, responses))
    prompt_mask = torch.tensor([[p < n for p in range(max(prompts))] for n in prompts])
    response_mask = torch.zeros(len(prompts), count, longest, dtype=torch.bool)
    for row, lengths in enumerate(responses):
        for number, length in enumerate(lengths):
            response_mask[row, number, :length] = True
    prompt_ids = torch.randint(3, VOCABULARY, prompt_mask.shape, generator=generator)
    prompt_ids[:, :common] = prompt_ids[0, :common]
    return TokenTree(
        prompt_ids=prompt_ids * prompt_mask,
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


BATCHES = {
    "one response": ([4, 6], [[3], [2]], 0),
    "eight responses": ([3], [[2, 1, 3, 1, 2, 4, 1, 2]], 0),
    "a common beginning": ([5, 3, 4], [[2, 3], [1, 4], [3]], 2),
    "a prompt that begins the others": ([5, 2, 4], [[2, 3], [1, 4], [3]], 2),
    "one prompt for all": ([4, 4], [[2, 3], [1, 4]], 4),
}


@pytest.mark.parametrize("even_width", [1, 10**6], ids=["narrow rows", "one row"])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("name", ["llama", "gemma3_window_4"])
def test_values_and_gradients_however_trees_are_packed(name, shape, even_width, monkeypatch):
    monkeypatch.setattr(packing, "EVEN_WIDTH", even_width)
    prompts, responses, common = BATCHES[shape]
    tree = ragged_tree(prompts, responses, common=common)
    model, scorer = build(name), Scorer("tree")
    rows = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
    with torch.no_grad():
        found = scorer(model, tree).sum
        in_rows = rows[-1]
        torch.testing.assert_close(found, one_by_one(model, tree), atol=2e-4, rtol=1e-5)
    assert tree.shared_prefix == (common or (prompts[0] if len(prompts) == 1 else 0))
    if even_width == 10**6:
        assert in_rows == 1, "everything is in one row"
    found, expected = gradients(model, lambda: scorer(model, tree).sum, lambda: one_by_one(model, tree))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_with_an_adapter_and_checkpointed_activations(name):
    """The same rounding, in another order: packed and plain gradients of a bfloat16 model point one way."""
    torch.manual_seed(1)
    settings = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(build(name).to(torch.bfloat16), settings)
    model.train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    tree = ragged_tree(common=1)
    packed, plain = gradients(
        model, lambda: Scorer("tree")(model, tree).sum, lambda: Scorer("plain")(model, tree).sum
    )
    assert torch.cosine_similarity(packed.float(), plain.float(), dim=0) > 0.99


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral_window_4", "gemma3_window_4"])
def test_flex_attention(name):
    """Values only and without compiling: torch runs its gradient on GPUs alone."""
    tree, scorer = ragged_tree(common=1), Scorer()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        found = scorer(build(name, "flex_attention").requires_grad_(False), tree).sum
    assert isinstance(scorer._shared, TreeLayout)
    torch.testing.assert_close(found, one_by_one(build(name), tree), atol=2e-4, rtol=1e-5)


def in_plain_torch(hidden, weight, targets, *, softcap, reduction, filter_eps):
    """What cut_cross_entropy.linear_cross_entropy returns, which runs on GPUs alone."""
    assert reduction == "none"
    assert filter_eps is None, "a filter would leave parts of the gradient out"
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@pytest.fixture
def fused_kernel(monkeypatch):
    module = types.ModuleType("cut_cross_entropy")
    module.linear_cross_entropy = in_plain_torch
    module.__spec__ = importlib.machinery.ModuleSpec("cut_cross_entropy", None)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", module)


@pytest.mark.usefixtures("fused_kernel")
@pytest.mark.parametrize("setting", [{"final_logit_softcapping": 2.0}, {"logits_scaling": 3.0}])
def test_a_fused_head_gets_what_it_needs(setting):
    model, tree, scorer = bent(setting), ragged_tree(), Scorer(head="fused")
    found, expected = gradients(model, lambda: scorer(model, tree).sum, lambda: one_by_one(model, tree))
    assert isinstance(scorer._head, heads.FusedHead)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.usefixtures("fused_kernel")
def test_a_fused_head_is_refused_where_the_weight_is_not_all():
    settings = LoraConfig(target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, tree, scorer = get_peft_model(build("llama"), settings).eval(), ragged_tree(), Scorer(head="fused")
    with pytest.warns(UserWarning, match="output embeddings with a single weight"), torch.no_grad():
        found = scorer(model, tree).sum
    torch.testing.assert_close(found, one_by_one(model, tree).detach(), atol=2e-4, rtol=1e-5)


def test_a_fused_head_without_its_package_says_what_to_install():
    if importlib.util.find_spec("cut_cross_entropy"):
        pytest.skip("cut-cross-entropy is installed")
    with pytest.raises(ConfigError, match=r"pip install 'pl-prefopt\[fused\]'"):
        Scorer(head="fused")


def gradients(model, *ways):
    """Gradients of Σ s², s the sums of log-probs in each way, as one vector a way."""
    for sums in (way() for way in ways):
        model.zero_grad()
        sums.square().sum().backward()
        yield torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("trained", ["all", "all but the head", "adapter"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_unpadded_sequences(name, trained, monkeypatch):
    monkeypatch.setattr(output_layers, "CHUNK_ELEMENTS", 5 * VOCABULARY)
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


def bent(setting):
    """A model that bends its logits (Gemma 2) or scales them (Granite)."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads_of = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    kind = Gemma2Config if "final_logit_softcapping" in setting else GraniteConfig
    extra = {"head_dim": 8, "sliding_window": 512} if kind is Gemma2Config else {}
    return AutoModelForCausalLM.from_config(kind(**common, **heads_of, **extra, **setting)).eval()


@pytest.mark.parametrize("setting", [{"final_logit_softcapping": 2.0}, {"logits_scaling": 3.0}])
def test_bent_and_scaled_logits(setting):
    model = bent(setting)
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

        def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
            out.logits = out.logits + torch.arange(VOCABULARY) / 10
            return out

    model, tree = Shifted(), ragged_tree()
    with pytest.warns(UserWarning, match="different log-probs with its head run by itself"):
        found = Scorer()(model, tree).sum
    expected = one_by_one(model, tree)
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

        def base_model(self, attention_mask=None, **inputs):
            return self.inner.model(**inputs)

        def forward(self, attention_mask=None, position_ids=None, **inputs):
            return self.inner(position_ids=position_ids, **inputs)

    with pytest.warns(UserWarning, match="different log-probs"):
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


def beginning_alike(plain: TokenTree, known, *, seed: int) -> TokenTree:
    """Another tree, whose prompts have ``known`` first tokens from ``plain``'s and differ behind them."""
    tree = ragged_tree([length + 3 for length in known], RESPONSES, seed=seed)
    for row, length in enumerate(known):
        tree.prompt_ids[row, :length] = plain.prompt_ids[row, :length]
        tree.prompt_ids[row, length] = (plain.prompt_ids[row] + 1)[length % plain.prompt_ids.shape[1]]
    return align_with_plain(plain, dataclasses.replace(tree, shared_prefix=-1))


@pytest.mark.parametrize("even_width", [1, 10**6], ids=["narrow rows", "one row"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_second_view_begins_with_what_the_first_one_left(name, attention, even_width, monkeypatch):
    monkeypatch.setattr(packing, "EVEN_WIDTH", even_width)
    model, scorer, plain = build(name, attention), Scorer("tree"), ragged_tree([6, 4, 5], common=1)
    view = beginning_alike(plain, [6, 0, 4], seed=1)
    left = scorer.prefix_cache(model, torch.device("cpu"))
    scorer(model, plain, left)  # with a graph, as in training
    computed = []
    model.get_input_embeddings().register_forward_hook(lambda *seen: computed.append(seen[1][0]))
    with torch.no_grad():
        torch.testing.assert_close(
            scorer(model, view, left).sum, one_by_one(model, view), atol=2e-4, rtol=1e-5
        )
    assert view.shared_with_plain == (6, 0, 4)
    if even_width == 10**6:
        assert computed[0].shape == (
            1,
            sum(view.prompt_lengths + view.response_lengths) - sum(view.shared_with_plain),
        )


def test_flex_attention_after_a_history():
    plain, scorer = ragged_tree([6, 4, 5]), Scorer()
    model = build("gemma3_window_4", "flex_attention").requires_grad_(False)
    view = beginning_alike(plain, [6, 0, 4], seed=1)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        left = scorer.prefix_cache(model, torch.device("cpu"))
        scorer(model, plain, left)
        found = scorer(model, view, left).sum
    assert left is not None
    expected = one_by_one(build("gemma3_window_4"), view)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-5)


def with_dropout(model):
    settings = LoraConfig(target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def with_attention_dropout(model):
    model.config.attention_dropout = 0.1
    return model


def with_checkpointing(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.parametrize("change", [with_dropout, with_attention_dropout, with_checkpointing])
def test_nothing_is_left_in_training_that_would_differ_or_is_not_kept(change):
    model, scorer, device = change(build("llama")), Scorer(), torch.device("cpu")
    assert scorer.prefix_cache(model.train(), device) is None
    assert scorer.prefix_cache(model.eval(), device) is not None


def test_a_model_that_would_not_read_its_history_says_so(monkeypatch):
    monkeypatch.setattr(prefix_cache._Reader, "update", lambda self, keys, values, *others: (keys, values))
    scorer, device = Scorer(), torch.device("cpu")
    with pytest.warns(UserWarning, match="from its start, because LlamaForCausalLM refuses keys and values"):
        assert scorer.prefix_cache(build("llama"), device) is None
    assert scorer.prefix_cache(build("llama"), device) is None, "asked once"


@pytest.mark.filterwarnings("ignore:All logits of a batch are in memory at once")
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "data2vec-text", "xmod"])
def test_a_row_may_have_as_many_tokens_as_there_are_positions_after_that_of_padding(kind):
    settings = ODD["roberta"]().to_dict() | {"model_type": kind}
    if kind == "xmod":
        settings |= {"languages": ["en_XX"], "default_language": "en_XX"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
    longest = 126  # of 128 positions, since those of padding and before it are left out
    fits, too_long = (ragged_tree([longest - 5 + more, 3], [[5, 2], [1]]) for more in (0, 1))
    with torch.no_grad():
        found = Scorer(layout="plain")(model, fits).sum
        assert torch.allclose(found, one_by_one(model, fits), atol=2e-4)
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            one_by_one(model, too_long)
    with pytest.raises(DataError, match=f"takes at most {longest} tokens, but a row has a prompt of 122"):
        Scorer(layout="plain")(model, too_long)
