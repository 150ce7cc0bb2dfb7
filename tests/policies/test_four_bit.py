"""4-bit weights give the numbers of their de-quantised values in plain torch, on every processor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pl_prefopt.policies import FourBit, PolicySpec, build_frozen, build_policy
from tests.support import tiny_llama

bnb = pytest.importorskip("bitsandbytes")

LORA = {"r": 4, "target_modules": "all-linear"}
IDS = torch.arange(5, 15)[None]


def quantised_layer(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(
        torch.randn(outputs, inputs), requires_grad=False, quant_type="nf4", module=layer
    ).to("cpu")
    return layer.eval()


def plain_weight(layer) -> torch.Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def quantised(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if type(layer) is bnb.nn.Linear4bit}


@pytest.mark.parametrize("cpu_of_bitsandbytes", ["avx512_bf16"], indirect=True)
def test_left_alone_bitsandbytes_repacks_and_then_gives_other_numbers(cpu_of_bitsandbytes):
    """What the other tests of this file are about, and that they would see it."""
    layer = quantised_layer(128, 64)
    before = plain_weight(layer)
    with torch.no_grad():
        layer(torch.randn(3, 128))
    assert layer.weight.quant_state.packing_format_for_cpu
    assert (plain_weight(layer) - before).abs().max() > 1
    with torch.no_grad(), pytest.raises(RuntimeError, match="invalid for input"):
        quantised_layer(32, 64)(torch.randn(3, 32))


@pytest.mark.parametrize("hidden", [32, 128], ids=["narrower than a block", "of many blocks"])
@pytest.mark.parametrize("double", [False, True], ids=["scales", "quantised scales"])
def test_a_policy_trains_on_the_same_weights_before_and_after_a_validation(
    cpu_of_bitsandbytes, tmp_path, hidden, double
):
    tiny_llama(hidden=hidden).save_pretrained(tmp_path)
    torch.manual_seed(1)
    spec = PolicySpec(name=str(tmp_path), lora=LORA)
    plain = build_policy(spec)
    small = build_policy(
        PolicySpec(name=str(tmp_path), lora=LORA, four_bit=FourBit(compute="float32", double=double))
    )
    adapter = {name: torch.randn_like(w) for name, w in plain.state_dict().items() if "lora_" in name}
    for policy in (plain, small):
        policy.load_state_dict(adapter, strict=False)
    layers = quantised(small)
    assert len(layers) == 14
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = plain_weight(layer)
    gradients = []
    for policy in (plain, small):
        with torch.no_grad():
            validated = policy.eval()(input_ids=IDS).logits
        logits = policy.train()(input_ids=IDS).logits
        torch.testing.assert_close(logits, validated, atol=1e-4, rtol=1e-5)
        logits.log_softmax(-1)[0, 0, 7].backward()
        gradients.append([logits.detach(), *(w.grad for w in policy.parameters() if w.grad is not None)])
    assert len(gradients[0]) == 1 + 2 * 14
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_frozen_model_is_its_dequantised_self(cpu_of_bitsandbytes, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    frozen = build_frozen(PolicySpec(name=str(tmp_path), four_bit=FourBit(compute="float32")))
    plain = build_frozen(PolicySpec(name=str(tmp_path)))
    for name, layer in quantised(frozen).items():
        plain.get_submodule(name).weight.data = plain_weight(layer)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(frozen(input_ids=IDS).logits, plain(input_ids=IDS).logits)
