"""Tiny models and tokenisers made on the spot, so that tests need no network and no download."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? Paris is the capital of France.",
    "Please write a short answer: yes, no, or maybe. Sorry, I cannot help with that!",
    "Human: Hello there, how are you?\n\nAssistant: I am fine, thank you. 0123456789 naïve café 你好",
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_BROWSER = f"there is no browser: none of {', '.join(BROWSERS)} is on the PATH"


def find_browser() -> str | None:
    """Return the path of a browser that can be driven, or ``None``."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def tiny_tokenizer(
    *,
    chat_template: str | None = CHATML,
    bos: bool = False,
    vocab_size: int = 400,
    corpus: Iterable[str] = CORPUS,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokeniser on a few sentences; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        bos_id = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="<|im_end|>" if chat_template else "<|endoftext|>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(
    vocab_size: int = 400, *, seed: int = 0, layers: int = 2, hidden: int = 32
) -> LlamaForCausalLM:
    """Build a random Llama whose logits are spread enough for log-probs to differ visibly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=4,
        eos_token_id=2,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_model(folder: Path, *, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """Write a tiny model and its tokeniser where ``from_pretrained`` finds them."""
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    tiny_llama(len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
