"""Peak memory of token-level KL divergences at a vocabulary of 128k, beside log-probs alone and whole logits.

`python scripts/benchmarks/token_divergence.py` runs each way in a process of its own, forward and backward,
with a small model whose vocabulary is Llama 3's and 4,096 response tokens, and prints the peak of resident
memory beyond that of the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pl_prefopt.scoring import DivergingLogProbs, HiddenStates, LogProbs, Scorer
from pl_prefopt.types import TokenTree

VOCABULARY, PROMPT, RESPONSE = 128_256, 64, 2048
WAYS = ("log-probs", "forward and reverse KL", "whole logits")


def main() -> None:
    """Measure one way, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    way = parser.parse_args().way
    if way is not None:
        print(json.dumps(measure(way)))
        return
    for one in WAYS:
        # Large blocks go back to the system at once: else glibc's heap keeps holes of them.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        words = [sys.executable, __file__, "--way", one]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{one:>24}: {found['mib']:6.0f} MiB beyond the model, {found['seconds']:.1f} s")


def measure(way: str) -> dict[str, float]:
    """Return the peak beyond the model and the time of one forward and backward pass."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=8192, **sizes))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    tree, scorer = two_responses(), Scorer()
    scorer.prefix_cache(model, torch.device("cpu"))  # probes now
    before, start = peak(), time.perf_counter()
    if way == "whole logits":
        ids = torch.cat([tree.prompt_ids.expand(2, -1), tree.response_ids[0]], dim=1)
        with torch.no_grad(), model.disable_adapter():
            reference = model(input_ids=ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        policy = model(input_ids=ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        (reference.exp() * (reference - policy)).sum().backward()
    elif way == "log-probs":
        with torch.no_grad(), model.disable_adapter():
            scorer(model, tree)
        scorer(model, tree).sum.sum().backward()
    else:
        with torch.no_grad(), model.disable_adapter():
            _, states = scorer.read(model, tree, [LogProbs(), HiddenStates()])
        vocabulary = scorer.vocabulary(model, states, model.disable_adapter)
        readout = DivergingLogProbs((vocabulary,), ("forward", "reverse"))
        scorer.read(model, tree, [readout])[0].sum().backward()
    return {"mib": peak() - before, "seconds": time.perf_counter() - start}


def two_responses() -> TokenTree:
    """One prompt with two long responses."""
    ids = torch.randint(VOCABULARY, (1, 2, RESPONSE))
    prompt = torch.randint(VOCABULARY, (1, PROMPT))
    there = torch.ones_like(ids, dtype=torch.bool)
    return TokenTree(
        prompt_ids=prompt,
        prompt_mask=torch.ones_like(prompt, dtype=torch.bool),
        response_ids=ids,
        response_mask=there,
        counted_mask=there,
    )


def peak() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
