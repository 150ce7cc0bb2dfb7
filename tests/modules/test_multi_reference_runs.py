"""Whole runs with several references and with a second view."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from lightning.pytorch import Callback

from pl_prefopt.callbacks import MetricsFile, ReferenceEnsemble
from pl_prefopt.errors import ContractError
from pl_prefopt.modules import DPOModule, MRPOModule, SrModule
from pl_prefopt.objectives import (
    DPO,
    IPO,
    MRPO,
    AdaptiveClip,
    FixedWeights,
    Geometric,
    MultiDPO,
    SrDPO,
    SrIPO,
    VirtualReference,
)
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff, FrozenModel
from pl_prefopt.views import QualityPrompt
from tests.runs import lora_spec, make_datamodule, make_trainer, metrics_of, pair_rows, scored_rows
from tests.support import save_tiny_model, tiny_tokenizer

ANGLED = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def sgd(parameters):
    # So calm that two runs that should be equal stay so, rounding and all.
    return torch.optim.SGD(parameters, lr=0.05)


def bold(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


class Predictions(Callback):
    """Keeps what is predicted."""

    def __init__(self):
        self.batches = []

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.batches.append((batch.index.tolist(), *outputs))


def predict(tmp_path, module, rows, members, **settings):
    """Return (row numbers, scored, outcome) of each batch."""
    kept = Predictions()
    trainer = make_trainer(tmp_path, ReferenceEnsemble(members, **settings), kept)
    trainer.predict(module, make_datamodule(tmp_path, rows), return_predictions=False)
    return kept.batches


class Record(Callback):
    """Keeps each training step's loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def run(tmp_path, module, members, *, epochs=3, rows=None, **settings):
    """Train; return each step's loss, the trained weights and the last metrics."""
    torch.manual_seed(0)
    record = Record()
    trainer = make_trainer(tmp_path, ReferenceEnsemble(members, **settings), record, max_epochs=epochs)
    trainer.fit(module, make_datamodule(tmp_path, rows))
    weights = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    return record.losses, weights, trainer.callback_metrics


def frozen(folder, **settings):
    return FrozenModel(PolicySpec(name=str(folder)), **settings)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another model with the policy's tokeniser and template."""
    return save_tiny_model(tmp_path_factory.mktemp("other-model"), seed=7)


@pytest.fixture(scope="module")
def two_strangers(tmp_path_factory):
    """Two architectures with tokenisers of their own, one with another chat template and one without any."""
    folders = []
    for kind, template, size in (("qwen2", ANGLED, 300), ("gpt2", None, 340)):
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = tiny_tokenizer(chat_template=template, vocab_size=size)
        common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "pad_token_id": 4}
        config = {
            "qwen2": lambda common=common: transformers.Qwen2Config(**common, **SMALL, num_key_value_heads=1),
            "gpt2": lambda common=common: transformers.GPT2Config(**common, n_embd=16, n_layer=1, n_head=2),
        }[kind]()
        torch.manual_seed(len(folders))
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders


# --- MRPO


@pytest.mark.parametrize("aggregate", [None, Geometric()])
def test_without_room_mrpo_is_dpo_step_by_step(tiny_model, other_model, tmp_path, aggregate):
    settings = {"beta": 0.5, "clip": AdaptiveClip(0.0), **({"aggregate": aggregate} if aggregate else {})}
    module = MRPOModule(lora_spec(tiny_model), MRPO(**settings), optimizer=sgd)
    losses, weights, metrics = run(tmp_path, module, [AdapterOff(), frozen(other_model)])
    expected, same_weights, _ = run(
        tmp_path, DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd), [AdapterOff()]
    )
    assert losses == pytest.approx(expected, abs=1e-5)
    assert len(set(losses)) == len(losses) == 9
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same_weights[name], atol=1e-5, rtol=1e-4)
    assert metrics["val/clip_rate"] == 1
    assert metrics["val/epsilon"] == 0


@pytest.mark.parametrize("objective", [MRPO(beta=0.5), MultiDPO(beta=0.5)])
def test_equal_references_make_it_dpo_step_by_step(tiny_model, tmp_path, objective):
    module = MRPOModule(lora_spec(tiny_model), objective, optimizer=sgd)
    losses, *_ = run(tmp_path, module, [AdapterOff(), AdapterOff(), AdapterOff()])
    expected, *_ = run(
        tmp_path, DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd), [AdapterOff()]
    )
    assert losses == pytest.approx(expected, abs=1e-5)


def test_with_room_mrpo_is_another_method_and_learns(tiny_model, other_model, tmp_path):
    objective = MRPO(beta=0.5, clip=AdaptiveClip(1e6))
    module = MRPOModule(lora_spec(tiny_model), objective, optimizer=bold)
    members = [AdapterOff(), frozen(other_model)]
    losses, _, metrics = run(tmp_path, module, members, epochs=8, rows=pair_rows())
    assert losses[0] != pytest.approx(math.log(2), abs=1e-3)
    assert metrics["val/loss"] < 0.5
    assert metrics["val/accuracy"] > 0.9
    assert metrics["val/alpha_0"] + metrics["val/alpha_1"] == pytest.approx(1.0, abs=1e-5)
    shown = {
        "log_ratio_0",
        "log_ratio_1",
        "log_ratio_margin_1",
        "epsilon",
        "clip_rate",
        "reference_disagreement",
    }
    assert {f"val/{name}" for name in (*shown, "reference_accuracy")} <= metrics.keys()


def test_fixed_weights_fix_the_number_of_references(tiny_model, tmp_path):
    module = MRPOModule(lora_spec(tiny_model), MRPO(weights=FixedWeights([1, 1, 2])))
    with pytest.raises(ContractError, match=r"MRPO needs exactly 3 reference\(s\), but .* has 2"):
        run(tmp_path, module, [AdapterOff(), AdapterOff()])


def test_without_references_mrpo_is_refused(tiny_model, tmp_path):
    with pytest.raises(ContractError, match="MRPO needs at least 1"):
        run(tmp_path, MRPOModule(lora_spec(tiny_model), MRPO()), [])


def direct(folder, template, prompt, response):
    """Σ log π over the response and one end token, of text that is written here and not by the package."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    before = template.format(prompt)
    glue = "" if "<" in template else " "
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    whole = tokenizer(before + glue + response, add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids
    whole.append(tokenizer.eos_token_id)
    with torch.no_grad():
        log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(log_probs[place - 1, whole[place]].item() for place in range(len(ids), len(whole)))


@pytest.mark.parametrize("precompute", [False, True])
def test_three_architectures_with_their_own_tokenisers(tiny_model, two_strangers, tmp_path, precompute):
    rows = scored_rows(4)
    members = [AdapterOff(), *(frozen(folder) for folder in two_strangers)]
    module = MRPOModule(lora_spec(tiny_model), MRPO(beta=0.5, clip=AdaptiveClip(1.0)), optimizer=sgd)
    settings = {"precompute": precompute, "cache_dir": str(tmp_path / f"references-{precompute}")}
    written = {
        tiny_model: "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        two_strangers[0]: "<user>{}<|im_end|><assistant>",
        two_strangers[1]: "User: {}\n\nAssistant:",
    }
    seen = []
    for numbers, scored, outcome in predict(tmp_path, module, rows, members, **settings):
        assert scored.references.shape[0] == 3
        assert outcome.reward.isfinite().all()
        for row, number in enumerate(numbers):
            for place, response in enumerate(rows[number]["responses"]):
                expected = [direct(*model, rows[number]["prompt"], response) for model in written.items()]
                assert scored.references[:, row, place].tolist() == pytest.approx(expected, rel=1e-4)
        seen += numbers
    assert sorted(seen) == [0, 1, 2, 3]
    losses, _, metrics = run(tmp_path, module, members, rows=rows, **settings)
    assert losses[-1] < losses[0]
    assert {"val/alpha_2", "val/log_ratio_2"} <= metrics.keys()


# --- Sr-DPO and Sr-IPO


@pytest.mark.parametrize(("refined", "plain"), [(SrDPO, DPO), (SrIPO, IPO)])
def test_without_strength_a_run_is_the_plain_methods(tiny_model, tmp_path, refined, plain):
    def calmer(parameters):
        return torch.optim.SGD(parameters, lr=0.05 if plain is DPO else 0.002)

    module = SrModule(lora_spec(tiny_model), refined(beta=0.5, strength=0.0), optimizer=calmer)
    losses, *_ = run(tmp_path, module, [AdapterOff()])
    expected, *_ = run(
        tmp_path, DPOModule(lora_spec(tiny_model), plain(beta=0.5), optimizer=calmer), [AdapterOff()]
    )
    assert losses == pytest.approx(expected, abs=1e-6)


def test_an_untrained_policy_has_nothing_to_refine(tiny_model, tmp_path):
    module = SrModule(lora_spec(tiny_model), SrDPO(beta=0.5, strength=0.9), optimizer=sgd)
    losses, _, metrics = run(tmp_path, module, [AdapterOff()])
    expected, *_ = run(
        tmp_path, DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd), [AdapterOff()]
    )
    assert losses[0] == expected[0] == pytest.approx(math.log(2))
    assert losses[-1] != pytest.approx(expected[-1], abs=1e-3)
    assert {"val/accuracy_quality", "val/margin_quality", "val/log_ratio_margin_0"} <= metrics.keys()
    assert metrics["val/margin"] == pytest.approx(0.5 * metrics["val/log_ratio_margin_0"].item(), rel=1e-4)


def test_an_empty_prompt_has_dpos_value_with_a_smaller_beta_and_a_steeper_gradient(tiny_model, tmp_path):
    # One trained policy, then one step of each objective from there.
    start = DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=bold)
    run(tmp_path, start, [AdapterOff()], rows=pair_rows(2), epochs=2)
    weights = {name: weight.detach().clone() for name, weight in start.policy.named_parameters()}
    steps, losses = [], []
    empty = SrDPO(beta=0.5, strength=0.75, view=QualityPrompt(text=""))
    for module in (
        SrModule(lora_spec(tiny_model), empty, optimizer=bold),
        DPOModule(lora_spec(tiny_model), DPO(beta=0.125), optimizer=bold),
    ):
        module.configure_model()
        module.policy.load_state_dict(weights, strict=False)
        (loss,), trained, _ = run(tmp_path, module, [AdapterOff()], rows=pair_rows(2), epochs=1)
        losses.append(loss)
        steps.append(
            {name: weight - weights[name.removeprefix("policy.")] for name, weight in trained.items()}
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] != pytest.approx(math.log(2), abs=1e-2)
    for name, step in steps[0].items():
        torch.testing.assert_close(step, 4 * steps[1][name], atol=1e-6, rtol=1e-3)
    assert any(step.abs().max() > 1e-3 for step in steps[0].values())


@pytest.mark.parametrize("several", [False, True])
def test_precomputed_references_give_the_same_steps(tiny_model, two_strangers, tmp_path, several):
    losses = []
    for precompute in (False, True):
        members = [AdapterOff(), *(frozen(folder) for folder in two_strangers if several)]
        reference = {"reference": VirtualReference(clip=AdaptiveClip(1.0))} if several else {}
        module = SrModule(lora_spec(tiny_model), SrDPO(beta=0.5, strength=0.8, **reference), optimizer=sgd)
        folder = str(tmp_path / "references")
        got, _, metrics = run(tmp_path, module, members, precompute=precompute, cache_dir=folder)
        losses.append(got)
        assert metrics["val/margin_quality"] != 0
        assert ("val/alpha_2" in metrics) == several
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    tables = {path.name.split("-")[1] for path in (tmp_path / "references").rglob("*.safetensors")}
    assert tables == {"plain", "quality"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_leaves_references_and_rewards_alone(tiny_model, other_model, tmp_path, precision):
    objective = SrDPO(reference=VirtualReference(FixedWeights([1, 2])))
    module = SrModule(lora_spec(tiny_model), objective, optimizer=sgd)
    kept = Predictions()
    ensemble = ReferenceEnsemble([AdapterOff(), frozen(other_model)])
    trainer = make_trainer(tmp_path, ensemble, kept, precision=precision)
    trainer.fit(module, make_datamodule(tmp_path))
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.predict(module, make_datamodule(tmp_path), return_predictions=False)
    for _, scored, outcome in kept.batches:
        found = [scored.references, scored.views["quality"].references, outcome.loss, outcome.reward]
        found += [*outcome.stats.values(), *outcome.view_rewards.values()]
        assert {values.dtype for values in found} == {torch.float32}


def test_the_view_is_what_the_policy_scores(tiny_model, tmp_path):
    rows = pair_rows(2)
    objective = SrDPO(view=QualityPrompt(text="Be good."))
    module = SrModule(lora_spec(tiny_model), objective)
    ((numbers, scored, _),) = predict(tmp_path, module, rows, [AdapterOff()])
    view = scored.views["quality"]
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    for place, number in enumerate(numbers):
        prompt, sides = f"Be good. {rows[number]['prompt']}", ("chosen", "rejected")
        expected = [direct(tiny_model, template, prompt, rows[number][side]) for side in sides]
        assert view.policy.sum[place].tolist() == pytest.approx(expected, rel=1e-4)
        assert view.references[0, place].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_test_run_writes_intervals(tiny_model, tmp_path):
    module = SrModule(lora_spec(tiny_model), SrDPO(beta=0.5), optimizer=sgd)
    ensemble = ReferenceEnsemble([AdapterOff()])
    rows = scored_rows(8)
    make_trainer(tmp_path, ensemble, max_epochs=2).fit(module, make_datamodule(tmp_path, rows))
    trainer = make_trainer(tmp_path, ensemble, MetricsFile(str(tmp_path)))
    trainer.test(module, make_datamodule(tmp_path, rows), verbose=False)
    metrics = metrics_of(tmp_path, "test")
    names = ("accuracy", "margin", "log_ratio_margin_0", "pearson", "spearman", "kendall")
    for name in (*names, "accuracy_quality", "margin_quality"):
        low, value, high = (metrics[f"test/{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
        assert low < high
