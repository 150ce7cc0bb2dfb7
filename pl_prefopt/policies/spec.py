"""The description of a model: all of its settings in YAML, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pl_prefopt.errors import ConfigError, PrefOptError, first_line, suggest
from pl_prefopt.paths import is_path, missing_folder
from pl_prefopt.policies.adapters import Settings, check_lora, check_saved, starts_at_base

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_WEIGHTS_AND_SETTINGS = (".safetensors", ".gguf", ".bin", ".json")


@dataclass(frozen=True, kw_only=True)
class FourBit:
    """4-bit weights by bitsandbytes (QLoRA, Dettmers et al., arXiv 2305.14314).

    Attributes:
        kind: ``nf4`` for normally distributed weights, or ``fp4``.
        double: quantise the quantisation constants too.
        compute: the dtype of the matrix products.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute: Literal["bfloat16", "float16", "float32"] = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """A causal language model to train, or to hold frozen as a reference.

    Attributes:
        name: what ``from_pretrained`` takes: a folder or a hub name.
        gguf_file: the GGUF file inside it, if the weights are GGUF.
        revision: the hub revision.
        dtype: the weights' type in memory.
        attn_implementation: ``auto`` takes, on a GPU, the first of ``tree_varlen`` (variable-length
            FlashAttention on prefix trees), ``flex_attention`` and masked ``sdpa`` that gives the model's own
            log-probs, and ``sdpa`` on a CPU. Any other is ``tree_varlen`` or what transformers calls it:
            ``sdpa``, ``eager``, ``flash_attention_2``, ...
        lora: arguments of ``peft.LoraConfig``; absent means that all weights are trained.
        adapter: the folder of a PEFT adapter to start from; its configuration takes the place of ``lora``.
        four_bit: load the base in 4 bits; to train it then needs ``lora`` or ``adapter``.
        resize_embeddings: the number of tokens to have embeddings for, where the tokeniser has tokens that
            the model doesn't know: ``len(tokenizer)``. New rows start as the mean of the others and are
            trained, by an adapter too.
        gradient_checkpointing: recompute activations in the backward pass.
        kernels: ``liger`` for fused kernels of liger-kernel in norms, rotary embeddings and gated MLPs; needs
            a CUDA GPU and layers like Llama's.
        compile: ``layers`` to compile each decoder layer by itself with ``torch.compile``.
        full_checkpoints: keep frozen weights in checkpoints too. Off by default: an adapter's checkpoint is
            small.
        dropout: keep the base model's own dropout. Off by default, so that an untrained policy equals its
            reference.
        trust_remote_code: run code that ships with the model, or an attention kernel from the hub.
    """

    name: str
    gguf_file: str | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    attn_implementation: str = "auto"
    lora: dict[str, Any] | None = None
    adapter: str | None = None
    four_bit: FourBit | None = None
    resize_embeddings: int | None = None
    gradient_checkpointing: bool = False
    kernels: Literal["liger"] | None = None
    compile: Literal["layers"] | None = None
    full_checkpoints: bool = False
    dropout: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.lora is not None and self.adapter is not None:
            raise ConfigError("policy.lora and policy.adapter exclude each other: remove one of them.")
        if self.lora is not None:
            _check_lora(self.lora)
        if self.resize_embeddings is not None and self.adapter is not None:
            raise ConfigError(
                "policy.resize_embeddings and policy.adapter exclude each other, since an adapter belongs to "
                "the embeddings that it was trained with: start from a merged export in policy.name."
            )
        if "/" in self.attn_implementation and not self.trust_remote_code:
            raise ConfigError(
                f"policy.attn_implementation '{self.attn_implementation}' is code on the hub: if you trust "
                "it, set policy.trust_remote_code: true."
            )

    @property
    def has_adapter(self) -> bool:
        """Whether the base stays frozen under a PEFT adapter."""
        return self.lora is not None or self.adapter is not None

    @property
    def starts_at_base(self) -> bool:
        """Whether the untrained policy is, bit by bit, its plain base with the adapter off."""
        return self.lora is not None and starts_at_base(self.lora)

    def adapter_settings(self) -> Settings | None:
        """Return the settings of the policy's adapter: ``lora``, or those in the folder ``adapter``.

        Raises:
            ConfigError: if the folder holds no adapter, or one that can't be used.
        """
        return self.lora if self.adapter is None else check_saved(self.adapter)

    def check_trainable(self) -> None:
        """Raise a ``ConfigError`` if this model can only be a reference."""
        if self.four_bit is not None and not self.has_adapter:
            raise ConfigError(
                "policy.four_bit needs policy.lora or policy.adapter: 4-bit weights can't be trained."
            )
        if self.four_bit is not None and self.full_checkpoints:
            raise ConfigError(
                "policy.full_checkpoints can't keep 4-bit weights: leave it off; `prefopt export --merge "
                "true` writes the whole model, in full precision."
            )

    def load_tokenizer(self) -> Any:
        """Return the model's own tokeniser.

        Raises:
            ConfigError: if ``name`` holds none.
        """
        from transformers import AutoTokenizer

        with explained(self.name, "tokenizer"):
            return AutoTokenizer.from_pretrained(
                self.name,
                gguf_file=self.gguf_file,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )

    def context_length(self) -> int | None:
        """Return how many tokens the model takes, from its configuration; ``None`` where it sets no limit.

        Raises:
            ConfigError: if ``name`` holds no configuration.
        """
        limit: int | None = getattr(self._text_config(), "max_position_embeddings", None)
        return limit

    def vocabulary_size(self, *, resized: bool = True) -> int:
        """Return how many tokens the model knows, from its configuration and ``resize_embeddings``.

        Args:
            resized: whether to take ``resize_embeddings`` into account.

        Raises:
            ConfigError: if ``name`` holds no configuration.
        """
        if resized and self.resize_embeddings is not None:
            return self.resize_embeddings
        size: int = self._text_config().vocab_size
        return size

    def check_token(self, token: int, tokenizer: Any) -> None:
        """Raise a ``ConfigError`` if the model has no embedding for a token.

        Args:
            token: the token's id.
            tokenizer: the tokeniser that it is from.
        """
        size = self.vocabulary_size()
        if token >= size:
            text = tokenizer.convert_ids_to_tokens(token)
            raise ConfigError(
                f"The rows have the token {token} ('{text}'), but {self.name} has embeddings for only {size} "
                "tokens: use the model's own tokeniser, or set policy.resize_embeddings: "
                f"{max(len(tokenizer), token + 1)} to add and train the others."
            )

    def _text_config(self) -> Any:
        from transformers import AutoConfig

        with explained(self.name, "configuration"):
            config = AutoConfig.from_pretrained(
                self.name,
                gguf_file=self.gguf_file,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
        return config.get_text_config()

    @property
    def _resized(self) -> list[int]:
        return [] if self.resize_embeddings is None else [self.resize_embeddings]

    @property
    def base_identity(self) -> str:
        """A hash of the base's weights, independent of their location and of how they are loaded."""
        # Only the files that it is loaded from: others, such as training_args.bin, may be added.
        kind = ".safetensors" if self.gguf_file is None else ".gguf"
        described = [self.revision, self.gguf_file, _identity(self.name, (kind,)), *self._resized]
        return hashlib.sha256(repr(described).encode()).hexdigest()[:16]

    @property
    def adapter_identity(self) -> str:
        """A hash of the saved adapter that training starts from; empty where there is none."""
        if self.adapter is None:
            return ""
        return hashlib.sha256(_identity(self.adapter).encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """A hash of the weights' identity and of what changes their log-probs.

        A folder is identified by its files' names, sizes and samples of their bytes, not by its path, so
        that it can be moved; a hub model by its name and revision.
        """
        digest = hashlib.sha256()
        described = [self.revision, self.gguf_file, self.dtype, self.four_bit, *self._resized]
        digest.update(repr(described).encode())
        for place in (self.name, self.adapter):
            digest.update(_identity(place).encode())
        return digest.hexdigest()[:16]


class explained:  # noqa: N801 - reads as a phrase: `with explained(name, "tokenizer"):`
    """Turn what transformers raises for a missing or broken model into one sentence."""

    def __init__(self, name: str, part: str) -> None:
        self.name, self.part = name, part

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # Damaged files raise any kind of exception; a lack of memory isn't explained here.
        if not isinstance(error, Exception) or isinstance(error, (PrefOptError, RuntimeError, MemoryError)):
            return
        if is_path(self.name) and not Path(self.name).is_dir():
            raise ConfigError(f"policy.name: {missing_folder(self.name)}") from error
        code = "trust_remote_code" in str(error)
        hint = "; if you trust it, set policy.trust_remote_code: true" if code else _similar_folder(self.name)
        raise ConfigError(
            f"Expected policy.name to be a folder or a hub name with a {self.part}, but '{self.name}' gave: "
            f"{first_line(error)}{hint}"
        ) from error


def _similar_folder(name: str) -> str:
    parent = Path(name).parent
    if Path(name).exists() or not parent.is_dir():
        return ""
    return suggest(name, [str(entry) for entry in parent.iterdir() if entry.is_dir()])


def _check_lora(settings: dict[str, Any]) -> None:
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in settings:
        if key not in known:
            raise ConfigError(f"policy.lora has no setting '{key}'{suggest(key, known)}.")
    try:
        LoraConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"policy.lora is refused by peft: {error}") from error
    check_lora(settings)


def _identity(place: str | None, kinds: tuple[str, ...] = _WEIGHTS_AND_SETTINGS) -> str:
    folder = Path(place) if place else None
    if folder is None or not folder.is_dir():
        return str(place)
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    return ";".join(f"{path.name}:{path.stat().st_size}:{sampled_hash(path)}" for path in files)


def sampled_hash(path: Path, *, pieces: int = 16, width: int = 4096) -> str:
    """Hash a few evenly spread pieces: reading tens of gigabytes would cost minutes."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in range(pieces):
            file.seek(max(0, size - width) * piece // max(1, pieces - 1))
            digest.update(file.read(width))
    return digest.hexdigest()[:16]
