"""Attention of prefix trees by segments, emulated on the CPU, against one row per response."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pl_prefopt import attention
from pl_prefopt.attention import ARGUMENT, FLEX, TREE_VARLEN, kernel_options, refusal
from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicySpec, build_frozen, build_policy, sketch_policy
from pl_prefopt.references import InitialPolicy
from pl_prefopt.scoring import Scorer, scorer
from pl_prefopt.scoring.layouts import Places, TreeLayout
from pl_prefopt.scoring.packing import pack, pack_behind
from pl_prefopt.scoring.segments import segments_of
from pl_prefopt.scoring.ways import presumed, unsuited, ways_of
from tests.runs import make_datamodule, make_trainer, pair_rows
from tests.scoring.architectures import CONFIGS, build
from tests.scoring.test_scorer import BATCHES, beginning_alike, bent, gradients, one_by_one, ragged_tree

CPU, META = torch.device("cpu"), torch.device("meta")
TREES = {
    "ragged": lambda: ragged_tree(),
    "one response each": lambda: ragged_tree([4, 1, 6], [[3], [1], [2]]),
    "a prompt without responses": lambda: ragged_tree([4, 2, 3], [[3, 1], [0], [2]], common=2),
} | {
    name: lambda given=given: ragged_tree(*given[:2], common=given[2])
    for name, given in BATCHES.items()
    if name not in ("one response", "a common beginning")
}


def exact(name: str) -> nn.Module:
    return build(name, TREE_VARLEN).double()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within a rounding or two in float32, in which norms and rotary embeddings are computed."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"qwen2", "gemma3"}))
def test_values_and_gradients_are_those_of_plain_rows(name):
    model, trees, plain = exact(name), Scorer("tree"), Scorer("plain")
    rows = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: rows.append(given[0].shape))
    for tree in (make() for make in TREES.values()):
        sums = [plain(model, tree).sum, trees(model, tree).sum]
        close(*sums)
        found, expected = gradients(model, *(lambda one=one: one for one in sums))
        close(found, expected)
        shared = tree.shared_prefix * (len(tree.prompt_lengths) - 1)
        assert rows[-1] == (1, sum(tree.prompt_lengths + tree.response_lengths) - shared)
    assert trees.attention == TREE_VARLEN


@pytest.mark.parametrize("name", ["llama", "gemma3_window_4"])
def test_keys_and_values_of_an_earlier_pass(name):
    model, trees, first = exact(name), Scorer("tree"), ragged_tree([6, 4, 5], common=1)
    view = beginning_alike(first, [6, 0, 4], seed=1)
    cache = trees.prefix_cache(model, CPU)
    trees(model, first, cache)
    close(trees(model, view, cache).sum, Scorer("plain")(model, view).sum)
    laid = trees._shared.lay_out(model, view, cache)
    assert laid.inputs["input_ids"].numel() == sum(view.prompt_lengths + view.response_lengths) - 10


def test_models_take_turns_and_recompute_their_own_segments():
    """Two forward passes before the first backward pass, with checkpointed activations and an adapter."""
    settings = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    models = nn.ModuleList(
        get_peft_model(exact(name), settings).train() for name in ("llama", "gemma3_window_4")
    )
    for model in models:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    trees = [ragged_tree(), ragged_tree([2, 7], [[5, 1], [2, 2]], seed=1)]

    def sums(layout):
        scored = [Scorer(layout)(model, tree).sum for model, tree in zip(models, trees, strict=True)]
        return torch.cat([one.flatten() for one in scored])

    found, expected = gradients(models, lambda: sums("tree"), lambda: sums("plain"))
    close(found, expected)


def test_generation_and_plain_rows_are_as_with_sdpa():
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 3]])
    mask = (ids > 0).long()
    found = [
        build("gemma3_window_4", name).generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for name in (TREE_VARLEN, "sdpa")
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert all(map(torch.equal, found[0].scores, found[1].scores))


def test_segments_by_hand():
    """Two prompts of 3 and 2 tokens that share one; responses of 2 and 1, and of 1."""
    found = segments_of([3, 2], [[2, 1], [0, 1]], pack([6, 3], 1, most_rows=1), CPU)
    assert found.sizes == ((5, 5), (1, 4), (2, 3))
    assert found.query_ends.tolist() == [0, 5, 6, 8]
    assert found.key_ends.tolist() == [0, 5, 9, 12]
    assert found.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 6, 7]
    assert (found.longest_query, found.longest_key, found.width, found.read) == (5, 5, 8, 0)
    # The same prompts' first tokens, 2 and 1, are read from a cache.
    found = segments_of([3, 2], [[2, 1], [0, 1]], pack_behind([6, 3], [2, 1], most_rows=1), CPU)
    assert found.sizes == ((3, 5), (1, 4), (2, 3))
    assert found.keys.tolist() == [0, 1, 3, 4, 5, 0, 1, 3, 6, 2, 7, 8]
    assert (found.width, found.read) == (9, 3)
    assert segments_of([2, 3], [[1], [2]], pack([3, 5], 0, most_rows=1), CPU).keys is None


def test_a_row_is_laid_out_without_reading_from_its_device():
    """A meta tensor has no values to read, and a GPU would have to be waited for."""
    model, tree = exact("llama"), ragged_tree(common=1).to(META)
    laid = TreeLayout(attention=TREE_VARLEN).lay_out(model, tree)
    segments = laid.inputs[ARGUMENT]
    assert segments.keys.device == segments.query_ends.device == laid.inputs["position_ids"].device == META


def test_wrong_positions_are_found_out(monkeypatch):
    monkeypatch.setattr(
        Places, "positions", lambda self, tree: torch.arange(self.width).expand(self.rows, -1)
    )
    with pytest.raises(ConfigError, match=r"different log-probs with a row of segments \(tree_varlen\)"):
        Scorer("tree")(exact("llama"), ragged_tree())


def test_a_model_that_does_not_pass_segments_on_is_found_out():
    model, tree = exact("llama"), ragged_tree()
    for layer in model.model.layers:
        own = layer.self_attn.forward

        def forward(*args, own=own, **kwargs):
            return own(*args, **{key: value for key, value in kwargs.items() if key != ARGUMENT})

        layer.self_attn.forward = forward
    with pytest.warns(UserWarning, match="LlamaAttention isn't given the model's argument tree_segments"):
        found = Scorer()(model, tree).sum
    close(found, Scorer("plain")(exact("llama"), tree).sum)


@pytest.mark.parametrize(
    ("options", "sizes", "reason"),
    [
        ({"scaling": 0.3, "sliding_window": 4}, (8, 8), None),
        ({"softcap": None, "dropout": 0.0}, (256, 256), None),
        ({"softcap": 50.0}, (8, 8), "has no 'softcap'"),
        ({"s_aux": torch.ones(2)}, (8, 8), "has no 's_aux'"),
        ({"dropout": 0.1}, (8, 8), "has no dropout"),
        ({}, (12, 12), "head sizes of 8, 16, ... 256, not 12"),
        ({}, (264, 264), "not 264"),
        ({}, (192, 128), "not 192 for keys and 128 for values"),
    ],
)
def test_what_the_kernel_cannot_compute(options, sizes, reason):
    found = refusal(torch.empty(3, 2, sizes[0]), torch.empty(4, 1, sizes[1]), options)
    assert (found is None) if reason is None else (reason in found)


def test_the_signatures_of_torch():
    old, newer, newest = (
        frozenset(names) for names in ([], ["scale", "window_size"], ["scale", "window_size", "enable_gqa"])
    )
    assert kernel_options(None, None, grouped=True, takes=old) == {"is_causal": True}
    assert kernel_options(4, 0.5, grouped=True, takes=newer) == {"scale": 0.5, "window_size": (3, 0)}
    assert kernel_options(None, None, grouped=False, takes=newest) == {"scale": None, "window_size": (-1, 0)}
    assert kernel_options(None, None, grouped=True, takes=newest)["enable_gqa"] is True
    assert attention._missing(None, 0.25, 16, old) is None
    assert "has no window_size; that of torch 2.11 has" in attention._missing(4, 0.25, 16, old)
    assert "has no scale" in attention._missing(None, 0.3, 16, old)
    assert attention._missing(4, 0.3, 16, newer) is None


def test_autocast_reaches_queries_and_keys_in_float32(monkeypatch):
    """Rotary embeddings leave them so, beside values in bfloat16, and the kernel takes one dtype."""
    seen, real = [], attention._one_by_one
    monkeypatch.setattr(
        attention, "_one_by_one", lambda *given: seen.extend(one.dtype for one in given[:3]) or real(*given)
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        Scorer("tree")(build("llama", TREE_VARLEN), ragged_tree())
    assert set(seen) == {torch.bfloat16}


def test_the_kernel_is_called_as_the_installed_torch_declares_it():
    segments = segments_of([3, 2], [[2, 1], [0, 1]], pack([6, 3], 1, most_rows=1), CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(8, 4, 16, dtype=torch.bfloat16, requires_grad=True)
        k = torch.empty(12, 2, 16, dtype=torch.bfloat16, requires_grad=True)
        out = attention._by_kernel(q, k, k, segments, 4, 0.3)
        out.sum().backward()
    assert out.shape == q.shape == q.grad.shape
    assert k.grad.shape == k.shape


@pytest.mark.parametrize("lost", [[], [TREE_VARLEN], [TREE_VARLEN, FLEX]])
def test_the_first_attention_that_gives_the_models_own_log_probs_is_taken(lost, monkeypatch, caplog):
    """Of three: variable-length, FlexAttention (without gradient on a CPU), masked SDPA."""
    model, tree = build("llama").requires_grad_(False), ragged_tree()
    attention.want(model, "auto")
    real = TreeLayout.lay_out
    order = (TREE_VARLEN, FLEX, "sdpa")
    monkeypatch.setattr(scorer, "ways_of", lambda model, device: order)

    def lay_out(self, *args):
        if self.attention in lost:
            raise ValueError(f"no {self.attention} here")
        return real(self, *args)

    monkeypatch.setattr(TreeLayout, "lay_out", lay_out)
    chosen = Scorer()
    with caplog.at_level(logging.INFO), torch.compiler.set_stance("force_eager"), torch.no_grad():
        found = chosen(model, tree).sum
    torch.testing.assert_close(found, Scorer("plain")(build("llama"), tree).sum)
    assert chosen.attention == order[len(lost)]
    assert model.config._attn_implementation == ("sdpa" if len(lost) == 2 else TREE_VARLEN)
    (line,) = [record.message for record in caplog.records if "prefix trees" in record.message]
    assert f"with the attention {order[len(lost)]}: a probe" in line
    assert all(f"(no {name} here)" in line for name in lost)


def test_an_attention_with_wrong_gradients_alone_is_not_taken(monkeypatch, caplog):
    """Not even in a pass of validation, before training."""
    model, tree, chosen = build("llama", "sdpa"), ragged_tree(), Scorer()
    attention.want(model, "auto")
    order = lambda model, device: (TREE_VARLEN, "sdpa")  # noqa: E731
    monkeypatch.setattr(scorer, "ways_of", order)

    def last_alone(ctx, gradient):
        (index,) = ctx.saved_tensors
        return gradient.new_zeros((ctx.rows, *gradient.shape[1:])).index_copy_(
            0, index.long(), gradient
        ), None

    right = attention._Gathered.backward
    monkeypatch.setattr(attention._Gathered, "backward", staticmethod(last_alone))
    kept = [torch.ones_like(weight) for weight in model.parameters()]
    for weight, gradient in zip(model.parameters(), kept, strict=True):
        weight.grad = gradient
    with caplog.at_level(logging.INFO), torch.inference_mode():
        chosen(model, tree)
    assert chosen.attention == "sdpa"
    found, expected = (gradients_alone(one, model, tree) for one in (chosen, Scorer("plain")))
    assert "different gradients with a row of segments (tree_varlen) (by 0." in caplog.text
    close(found, expected)
    assert all(torch.equal(one, torch.ones_like(one)) for one in kept), "the probe adds to no gradient"
    monkeypatch.setattr(attention._Gathered, "backward", right)
    again = Scorer()
    again(model, tree)
    assert again.attention == TREE_VARLEN


def gradients_alone(scored, model, tree):
    grads = torch.autograd.grad(scored(model, tree).sum.sum(), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in grads])


def test_a_soft_capped_model_is_not_run_by_segments(monkeypatch, caplog):
    """transformers loads it with eager attention: SDPA has no soft-capping."""
    model, tree, chosen = bent({"final_logit_softcapping": 2.0}), ragged_tree(), Scorer()
    assert attention.loaded_with("auto", model.config) == "eager"
    assert attention.loaded_with("auto", build("llama").config) is None
    model.set_attn_implementation("eager")
    expected = one_by_one(model, tree)
    attention.want(model, "auto")
    assert ways_of(model, torch.device("cuda")) == (TREE_VARLEN, "eager")
    monkeypatch.setattr(scorer, "ways_of", lambda model, device: ways_of(model, torch.device("cuda")))
    with caplog.at_level(logging.INFO), torch.compiler.set_stance("force_eager"), torch.no_grad():
        found = chosen(model, tree).sum
    torch.testing.assert_close(found, expected.detach(), atol=2e-4, rtol=1e-5)
    assert chosen.attention == model.config._attn_implementation == "eager"
    assert "transformers doesn't run Gemma2ForCausalLM with sdpa" in caplog.text


def test_a_scorer_decides_again_where_the_model_computes_in_another_precision(monkeypatch):
    """On a GPU a run may compute in bfloat16, and score afterwards in float32."""
    model, tree, chosen = build("llama", "sdpa").requires_grad_(False), ragged_tree(), Scorer()
    attention.want(model, "auto")
    order = lambda model, device: ways_of(model, torch.device("cuda"))  # noqa: E731
    monkeypatch.setattr(scorer, "ways_of", order)
    real = attention.refusal

    def refusal(query, value, options):
        return real(query, value, options) or ("no float32" if query.dtype == torch.float32 else None)

    monkeypatch.setattr(attention, "refusal", refusal)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for dtype, name in ((torch.bfloat16, TREE_VARLEN), (None, FLEX), (torch.bfloat16, TREE_VARLEN)):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                chosen(model, tree)
            assert chosen.attention == name


def test_a_second_model_of_the_run_is_probed_by_itself(tiny_model, tmp_path):
    """A reference that is a copy of the whole policy gets no segments that only the policy can read."""
    module = DPOModule(PolicySpec(name=str(tiny_model), attn_implementation=TREE_VARLEN), DPO())
    trainer = make_trainer(tmp_path, ReferenceEnsemble([InitialPolicy()]), limit_val_batches=0)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(2)))
    assert module.scorer.attention == TREE_VARLEN


def test_what_is_planned_for_an_attention():
    """Fake tensors have no block masks: FlexAttention is planned with a mask."""
    model = build("llama", "sdpa")
    for name, dtype, planned in (
        ("auto", torch.float32, "sdpa"),
        ("auto", torch.bfloat16, TREE_VARLEN),
        (FLEX, torch.bfloat16, "sdpa"),
        ("sdpa", torch.bfloat16, "sdpa"),
    ):
        model.wanted_attention = attention.Wanted(name, "sdpa")
        assert presumed(model.to(dtype), torch.device("cuda")) == planned


def test_dropout_of_scores_is_a_reason_for_a_mask():
    model = build("llama")
    attention.want(model, "auto")
    model.config.attention_dropout = 0.1
    for way in (TREE_VARLEN, FLEX):
        reason = f"{way} has no dropout, but LlamaForCausalLM's attention_dropout isn't 0"
        assert unsuited(model, way) == reason
    assert unsuited(model, "sdpa") is None


def test_a_policy_knows_the_attention_that_it_is_to_have(tiny_model):
    for name, loaded, shared in (("auto", "sdpa", "sdpa"), (TREE_VARLEN, "sdpa", TREE_VARLEN)):
        for make in (build_policy, sketch_policy):
            model = make(PolicySpec(name=str(tiny_model), attn_implementation=name))
            assert attention.wanted(model) == (name, loaded)
            assert model.config._attn_implementation == loaded
        model, chosen = build_frozen(PolicySpec(name=str(tiny_model), attn_implementation=name)), Scorer()
        chosen(model, ragged_tree())
        assert chosen.attention == shared
    assert PolicySpec(name="any").attn_implementation == "auto"
    explicit = build_policy(PolicySpec(name=str(tiny_model), attn_implementation="eager"))
    assert attention.wanted(explicit) == ("eager", "eager")
