"""Sums and interpolations of adapters and models, against plain merging."""

from __future__ import annotations

import copy
import math

import peft
import pytest
import torch

from pl_prefopt.cli.merge import merge_policies
from pl_prefopt.errors import ConfigError
from tests.support import save_tiny_model, tiny_llama


def adapter(base, folder, *, seed: int, **settings):
    """Save an adapter with random A and B; return its base with the adapter merged, by plain PEFT."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    save_tiny_model(folder / "base")
    base = tiny_llama(len(save_vocabulary(folder / "base")))
    base.name_or_path = base.config._name_or_path = str(folder / "base")
    first = adapter(base, folder / "first", seed=1, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    second = adapter(
        base,
        folder / "second",
        seed=2,
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
    )
    return folder, base, first, second


def save_vocabulary(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def loaded(base, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload().state_dict()


def test_a_sum_of_adapters_is_the_sum_of_their_merged_deltas(parts, tmp_path):
    folder, base, first, second = parts
    merge_policies([folder / "first", folder / "second"], [1.5, -0.5], tmp_path / "out")
    found = loaded(base, tmp_path / "out")
    for name, start in base.state_dict().items():
        expected = start + 1.5 * (first[name] - start) - 0.5 * (second[name] - start)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)
    by_itself = adapter_sum(folder)
    assert not torch.allclose(by_itself, found["model.layers.0.self_attn.q_proj.weight"], atol=1e-3)


def adapter_sum(folder):
    """The wrong way: A and B of one adapter scaled and used as they are."""
    from safetensors.torch import load_file

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    one = load_file(folder / "first" / "adapter_model.safetensors")
    return (1.5 * one[name.format("B")]) @ (1.5 * one[name.format("A")])


def test_slerp_turns_and_keeps_norms_between(parts, tmp_path):
    folder, base, first, second = parts
    merge_policies([folder / "first", folder / "second"], [0.75, 0.25], tmp_path / "out", method="slerp")
    found, start = loaded(base, tmp_path / "out"), base.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    one, two, both = (state[name] - start[name] for state in (first, second, found))
    angle = torch.arccos((one * two).sum() / one.norm() / two.norm())
    expected = torch.sin(0.75 * angle) * one + torch.sin(0.25 * angle) * two
    torch.testing.assert_close(both, expected / torch.sin(angle), atol=1e-4, rtol=1e-4)
    alone = "model.layers.0.mlp.up_proj.weight"  # the first adapter leaves it alone: linear
    torch.testing.assert_close(
        found[alone] - start[alone], 0.25 * (second[alone] - start[alone]), atol=1e-5, rtol=1e-5
    )


def test_models_are_added_relative_to_their_base(tmp_path):
    for name, seed in (("base", 0), ("first", 1), ("second", 2)):
        save_tiny_model(tmp_path / name, seed=seed)
    members = [tmp_path / "first", tmp_path / "second"]
    with pytest.raises(ConfigError, match="Expected --base"):
        merge_policies(members, [1.0, 1.0], tmp_path / "out")
    merge_policies(members, [1.0, 1.0], tmp_path / "out", base=str(tmp_path / "base"))
    from transformers import AutoModelForCausalLM

    base, first, second, found = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("base", "first", "second", "out")
    )
    for name, value in found.items():
        torch.testing.assert_close(value, first[name] + second[name] - base[name])
    with pytest.raises(ConfigError, match="1 − t and t"):
        merge_policies(members, [0.9, 0.9], tmp_path / "other", method="slerp")
    with pytest.raises(ConfigError, match="got 1 for 2"):
        merge_policies(members, [math.pi], tmp_path / "other")
