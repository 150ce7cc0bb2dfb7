"""Fused kernels and compiled layers: the same numbers, gradients and names of weights, on a CPU.

Liger's kernels need a GPU: functions in plain torch stand for them, which are called at the same places.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModelForCausalLM

from pl_prefopt import attention
from pl_prefopt.errors import ConfigError
from pl_prefopt.fast_layers import FastLayers, Kernels, compile_layers, liger, rms_norm, unfused, use_kernels
from pl_prefopt.policies import PolicySpec, check_fast_layers, fast, layers_of, with_fast_layers
from pl_prefopt.references import FrozenModel
from pl_prefopt.scoring import Scorer
from pl_prefopt.scoring.heads import ChunkedHead
from pl_prefopt.scoring.layouts import TreeLayout
from scripts.benchmarks.rows import LENGTHS, RandomRows
from tests.scoring.architectures import build
from tests.support import tiny_llama

LORA = {"r": 4, "target_modules": ["gate_proj", "down_proj"], "init_lora_weights": False}


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))


def random_batch(*lengths, vocabulary=400):
    sizes = [(prompt, list(responses)) for prompt, *responses in lengths]
    return RandomRows(sizes, vocabulary).batch(range(len(sizes))).trees["plain"]


def log_probs_and_gradients(model, tree, scorer=None):
    scored = (scorer or Scorer())(model, tree).sum
    scored.sum().backward()
    return scored.detach(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def watched():
    """The functions in plain torch, with a rotary embedding, and how often each was called."""
    calls = dict.fromkeys(("norm", "gated", "rotary"), 0)
    plain = dataclasses.asdict(unfused())
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    plain["rotary"] = apply_rotary_pos_emb

    def counted(name):
        def call(*arguments):
            calls[name] += 1
            return plain[name](*arguments)

        return call

    return Kernels(**{name: counted(name) for name in plain}), calls


def test_kernels_are_used_by_this_model_alone_and_change_no_number():
    plain, fused = (with_adapter(tiny_llama()) for _ in range(2))
    names = list(fused.state_dict())
    kernels, calls = watched()
    use_kernels(fused, kernels)
    tree = random_batch((7, 5, 3), (4, 6, 2))
    scorer = Scorer()
    scorer(fused, tree)  # probes: the layers are the model's own meanwhile, except for one comparison
    calls.update(dict.fromkeys(calls, 0))
    scored = scorer(fused, tree).sum
    assert calls == {"norm": 5, "gated": 2, "rotary": 2}  # two layers, and the norm after them
    scored.sum().backward()
    expected, gradients = log_probs_and_gradients(plain, tree)
    torch.testing.assert_close(scored.detach(), expected)
    found = {name: w.grad for name, w in fused.named_parameters() if w.grad is not None}
    assert found.keys() == gradients.keys()  # those of adapters on gate_proj and down_proj
    assert any("gate_proj.lora_B" in name for name in found)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient)
    assert list(fused.state_dict()) == names
    calls.update(dict.fromkeys(calls, 0))
    plain(input_ids=tree.prompt_ids)
    with FastLayers(fused).off():
        fused(input_ids=tree.prompt_ids)
    assert not any(calls.values())
    fused(input_ids=tree.prompt_ids)
    copy.deepcopy(fused)(input_ids=tree.prompt_ids)
    assert calls["norm"] == 10


def test_the_plain_functions_have_the_gradients_of_the_fused_ones():
    x, other = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    kernels = unfused()
    inputs = [part.requires_grad_() for part in (x, other, weight)]
    loss = (kernels.norm(x.float(), weight.float(), 1e-5) * kernels.gated(x, other)).square().sum()
    found = torch.autograd.grad(loss, inputs)
    gated = torch.nn.functional.silu(x) * other
    expected = torch.autograd.grad((rms_norm(x.float(), weight.float(), 1e-5) * gated).square().sum(), inputs)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)


def model_of(kind, **settings):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, vocab_size=100, num_key_value_heads=2, head_dim=8, **sizes, **settings
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_models_with_layers_like_llamas_fit(kind):
    kernels, calls = watched()
    model = model_of(kind)
    use_kernels(model, kernels)
    model(input_ids=torch.arange(5)[None])
    assert calls == {"norm": 9 if kind == "qwen3" else 5, "gated": 2, "rotary": 2}


@pytest.mark.parametrize(
    ("kind", "settings", "lacks"),
    [
        ("gemma", {}, "RMS norm"),  # 1 + weight
        ("olmo2", {}, "RMS norm"),  # weight times the norm in float32
        ("llama", {"hidden_act": "gelu"}, "gated MLP"),
        ("gpt_neox", {}, "RMS norm"),
    ],
)
def test_other_layers_are_refused(kind, settings, lacks):
    with pytest.raises(ConfigError, match=rf"doesn't fit .*, which has no {lacks}.*policy.kernels: null"):
        use_kernels(model_of(kind, **settings), unfused())


def test_what_is_missing_is_refused_before_a_model_loads(monkeypatch):
    spec = PolicySpec(name="x", kernels="liger")
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU, but the trainer runs on 'cpu'"):
        check_fast_layers(spec, "cpu")
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pl-prefopt\[liger\]'"):
        check_fast_layers(spec, "cuda")
    monkeypatch.setattr(fast.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"'layers' needs a C\+\+ compiler, .*: null"):
        check_fast_layers(PolicySpec(name="x", compile="layers"), "cpu")
    with pytest.raises(ConfigError, match=r"'layers' needs a C compiler, .* policy.compile: null"):
        check_fast_layers(PolicySpec(name="x", compile="layers"), "cuda")
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"'liger' needs a C compiler, .* policy.kernels: null"):
        check_fast_layers(PolicySpec(name="x", kernels="liger"), "cuda")
    check_fast_layers(PolicySpec(name="x"), "cpu")
    with pytest.raises(ConfigError, match="doesn't name its layers"):
        with_fast_layers(torch.nn.Linear(1, 1), PolicySpec(name="x", compile="layers"))


def test_wrong_kernels_are_noticed_before_the_first_batch():
    model = tiny_llama()
    use_kernels(model, dataclasses.replace(unfused(), gated=lambda gate, up: gate * up))
    with pytest.raises(ConfigError, match=r"different log-probs with the settings kernels and compile"):
        Scorer()(model, random_batch((4, 3, 2)))


class WrongNorm(torch.autograd.Function):
    """The RMS norm, whose scale is taken for a constant in the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(weight, scale)
        return weight * (x * scale)

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        return gradient * weight * scale, None, None


@pytest.mark.parametrize("adapter", [True, False])
def test_kernels_with_wrong_gradients_are_noticed_before_the_first_step(adapter):
    model = with_adapter(tiny_llama()) if adapter else tiny_llama()
    use_kernels(model, dataclasses.replace(unfused(), norm=WrongNorm.apply))
    tree, scorer = random_batch((4, 3, 2)), Scorer()
    wrong = r"different gradients with the settings kernels and compile \(by"
    with torch.no_grad(), pytest.raises(ConfigError, match=wrong):
        scorer(model, tree)  # already in a pass of validation
    scorer(model.requires_grad_(False), tree)  # the log-probs are right


def test_kernels_whose_gradients_cannot_be_compared_are_refused(monkeypatch):
    model = tiny_llama()
    use_kernels(model, unfused())
    another = torch.nn.Embedding(*model.get_input_embeddings().weight.shape)
    monkeypatch.setattr(model, "get_input_embeddings", lambda: another)
    with pytest.raises(ConfigError, match=r"can't be compared .* \(Embedding isn't called with token ids\)"):
        Scorer()(model, random_batch((4, 3, 2)))


def test_compiled_layers_change_no_number_and_take_any_length(fresh_compiler):
    """Lengths of HH-RLHF and AlpacaEval, divided by eight; a fifth of the 300 batches, for time."""
    plain, compiled = (with_adapter(tiny_llama()) for _ in range(2))
    names = list(compiled.state_dict())
    for model in (plain, compiled):
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    counter = CompileCounterWithBackend("eager")
    compile_layers(layers_of(compiled), counter)
    tree, scorer = random_batch((7, 5, 3), (4, 6, 2)), Scorer()
    scorer(compiled, tree)
    probed, batches = counter.frame_count, 0
    assert probed > 0
    found, expected = (log_probs_and_gradients(model, tree, scorer) for model in (compiled, plain))
    torch.testing.assert_close(found, expected)
    assert list(compiled.state_dict()) == names
    for rows in json.loads(LENGTHS.read_text()).values():
        sizes = [(1 + prompt // 8, [1 + length // 8 for length in rest]) for prompt, *rest in rows]
        dataset = RandomRows(sizes, 400)
        for start in range(0, len(sizes) - 1, 10):
            scorer(compiled, dataset.batch([start, start + 1]).trees["plain"])
            batches += 1
    assert batches == 60
    assert counter.frame_count - probed <= 3
    # Generation has a cache of keys and values: its passes aren't compiled.
    before, ids = counter.frame_count, tree.prompt_ids[:1, :4]
    tokens = [
        model.generate(ids, max_new_tokens=2, do_sample=False) for model in (compiled.eval(), plain.eval())
    ]
    assert torch.equal(*tokens)
    assert counter.frame_count == before


def test_two_kinds_of_layers_stay_compiled_in_every_pass_of_a_run(fresh_compiler, monkeypatch):
    """Reference, training and validation of Gemma 3; the kernel is replaced by what depends on its sizes."""

    def kernel(q, k, v, segments, window, scale):
        return q / (segments.longest_query + segments.longest_key) + k.mean() * v.mean()

    monkeypatch.setattr(attention, "_one_by_one", kernel)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    model = with_adapter(build("gemma3_window_4", "tree_varlen"))
    counter, draw = CompileCounterWithBackend("eager"), random.Random(0)
    compile_layers(layers_of(model), counter)
    layout, counts = TreeLayout(attention="tree_varlen"), []

    def passes(*contexts, responses=3):
        for _ in range(4):
            lengths = [[draw.randint(1, 30) for _ in range(1 + responses)] for _ in range(draw.randint(1, 4))]
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context())
                scored = layout.token_log_probs(model, random_batch(*lengths, vocabulary=90), ChunkedHead())
            if scored.requires_grad:
                scored.sum().backward()
        counts.append(counter.frame_count)

    passes(torch.no_grad, model.disable_adapter)
    passes()
    for responses in (3, 1):
        passes(torch.inference_mode, responses=responses)
        passes(torch.inference_mode, model.disable_adapter, responses=responses)
    passes(responses=1)
    assert counts[1] <= 4, "once per kind of layer, for the reference and for training"
    passes(torch.no_grad, model.disable_adapter)
    passes()
    assert counts[-1] == counts[-3] > 8


def test_the_norm_leaves_the_gradient_that_it_gets_as_it_is(monkeypatch):
    """Where a norm follows a layer, that gradient is the residual's too; Liger's default overwrites it."""
    given = []
    functional = SimpleNamespace(
        liger_rms_norm=lambda x, weight, epsilon, **options: given.append(options) or x, liger_swiglu=None
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    rope = SimpleNamespace(liger_rotary_pos_emb=None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.rope", rope)
    liger().norm(torch.ones(2), torch.ones(2), 1e-6)
    assert given == [{"in_place": False}]


def test_a_reference_of_its_own_takes_neither():
    for settings in ({"kernels": "liger"}, {"compile": "layers"}):
        with pytest.raises(ConfigError, match="takes no `kernels` and no `compile`"):
            FrozenModel(PolicySpec(name="any", **settings))
