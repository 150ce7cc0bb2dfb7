"""What is known of each model: that a loaded one does it is the proof that loading went right."""

from __future__ import annotations

import random
from typing import Any

_SENTENCE = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named "
    "after the engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)


class ModelError(Exception):
    """The model cannot be had; the message is one sentence."""


def split_digits(tokenizer: Any) -> None:
    """Set the splitting that SmolLM2's file names "smollm": every digit alone, then GPT-2's.

    transformers gives only GPT-2's.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def no_repair(tokenizer: Any) -> None:
    """Leave a tokenizer that is read right."""


def check_smollm2(model: Any, tokenizer: Any) -> str:
    """Check the special tokens, the chat template and one greedy answer."""
    _require(
        {
            "<|im_start|> is token 1": tokenizer.encode("<|im_start|>") == [1],
            "<|im_end|> is token 2": tokenizer.encode("<|im_end|>") == [2],
            "the end token is <|im_end|>": tokenizer.eos_token == "<|im_end|>",
            "there is a padding token": tokenizer.pad_token_id is not None,
            "there is a chat template": bool(tokenizer.chat_template),
        }
    )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    if "Paris" not in answer:
        raise ModelError(
            f"the loaded model answers {answer!r} when asked for the capital of France; "
            "try another version of transformers."
        )
    return f"the capital of France? {answer}"


def check_gemma(model: Any, tokenizer: Any) -> str:
    """Check the special tokens, the kinds of layers, and that a sentence beats its own words shuffled."""
    config = model.config
    kinds = [kind == "full_attention" for kind in config.layer_types]
    _require(
        {
            "a text begins with <bos>, token 2": tokenizer.encode("Hi")[0] == tokenizer.bos_token_id == 2,
            "the end token is <eos>, token 1": tokenizer.eos_token_id == 1,
            "there is no chat template": not tokenizer.chat_template,
            "every sixth layer sees all": kinds == [number % 6 == 5 for number in range(18)],
            "the others see 512 tokens": config.sliding_window == 512,
            "input and output embeddings are one": model.get_input_embeddings().weight
            is model.get_output_embeddings().weight,
        }
    )
    words = _SENTENCE.split()
    random.Random(0).shuffle(words)
    sentence, shuffled = (_perplexity(model, tokenizer, text) for text in (_SENTENCE, " ".join(words)))
    if sentence > 15 or shuffled < 10 * sentence:
        raise ModelError(
            f"the loaded model finds an English sentence too unlikely (perplexity {sentence:.1f}, and "
            f"{shuffled:.1f} with its words shuffled); try another version of transformers."
        )
    return f"perplexity of an English sentence {sentence:.1f}, with its words shuffled {shuffled:.0f}"


def _require(facts: dict[str, bool]) -> None:
    wrong = [fact for fact, holds in facts.items() if not holds]
    if wrong:
        raise ModelError(
            f"the model read from the GGUF file is wrong (expected: {'; '.join(wrong)}); "
            "try another version of transformers."
        )


def _perplexity(model: Any, tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return float(model(input_ids=ids, labels=ids).loss.exp())
