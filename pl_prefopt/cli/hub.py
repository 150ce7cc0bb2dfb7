"""Uploading an exported policy to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from pl_prefopt.errors import ConfigError, RunError, first_line

# The files that an export may have written, of a model, an adapter, heads and a tokeniser. transformers
# prefers an adapter to the model next to it, and a single file of weights to an index of several.
_EXPORTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.safetensors",
    "reward_head.safetensors",
    "reward_model.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class HubModel:
    """A model on the hub, existing or not.

    The server and the token are huggingface_hub's: ``HF_ENDPOINT``, and ``HF_TOKEN`` or the token that
    `hf auth login` has stored.

    Attributes:
        name: the namespace and the model's name.
        private: the visibility that it must have. ``None`` leaves it to the hub: an existing model keeps
            its own, and a new one is public unless its organisation's default is private.
    """

    name: str
    private: bool | None = None

    def check(self, folder: Path) -> None:
        """Check all that can be checked before the policy is loaded.

        Args:
            folder: the folder to upload, for messages.

        Raises:
            ConfigError: for a name without a namespace, in offline mode, without a token, and if the model
                exists with another visibility than ``private`` says.
            RunError: if the server refuses the token or can't be reached.
        """
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise ConfigError(f"--push-to-hub: {first_line(error)}") from error
        if "/" not in self.name:
            raise ConfigError(
                f"Expected --push-to-hub to have a namespace, yours or an organisation's, got '{self.name}': "
                f"use --push-to-hub NAMESPACE/{self.name}."
            )
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(
                "--push-to-hub needs the network, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset "
                "it, or export without --push-to-hub and upload later with "
                f"`hf upload {self.name} {folder}`."
            )
        if get_token() is None:
            raise ConfigError(
                "--push-to-hub needs a token with write access, and there is none: set HF_TOKEN, or log in "
                "with `hf auth login`."
            )
        api, state = HfApi(), "The export has not started"
        with _explained(state):
            api.whoami()
            try:
                is_private = api.model_info(self.name).private
            except RepositoryNotFoundError:  # it will be created
                return
        self._check_visibility(is_private, state)

    def push(self, folder: Path) -> str:
        """Upload a folder in place of an earlier export, in one commit, and return the model's address.

        Files of the same names are replaced, and other files of an earlier export are deleted; what no
        export writes, such as a licence, stays.

        Raises:
            RunError: if the server refuses it or can't be reached.
            ConfigError: if the model exists with another visibility than ``private`` says.
        """
        api, state = HfApi(), f"{folder} is complete; upload it with `hf upload {self.name} {folder}`"
        with _explained(state):
            address = api.create_repo(self.name, private=self.private, exist_ok=True)
            found = api.model_info(self.name)
        self._check_visibility(found.private, f"Nothing was uploaded. {state}")
        written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        stale = _stale((file.rfilename for file in found.siblings or []), written)
        with _explained(state):
            api.create_commit(
                self.name,
                [
                    *(CommitOperationAdd(name, folder / name) for name in sorted(written)),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message="Upload a policy trained with pl_prefopt",
            )
        deleted = f", and deleted {', '.join(stale)} there" if stale else ""
        return f"{address} ({_visibility(found.private)}){deleted}"

    def _check_visibility(self, found: bool | None, state: str) -> None:
        if self.private not in (None, found):
            raise ConfigError(
                f"Expected {self.name} to be {_visibility(self.private)}, but it exists and is "
                f"{_visibility(found)}: change that in its settings on the hub. {state}."
            )


def _stale(on_hub: Iterable[str], written: set[str]) -> list[str]:
    """Return the files on the hub that an earlier export has written and this one has not.

    >>> _stale(["LICENSE", "adapter_config.json", "config.json"], {"config.json", "model.safetensors"})
    ['adapter_config.json']
    """
    return sorted(
        name
        for name in on_hub
        if name not in written and any(fnmatchcase(name, pattern) for pattern in _EXPORTED)
    )


def _visibility(private: bool | None) -> str:
    return "private" if private else "public"


@contextmanager
def _explained(state: str) -> Iterator[None]:
    """Turn a failed request into one sentence, followed by ``state``."""
    try:
        yield
    # The exceptions of the HTTP client, the hub and its upload protocols have no class in common.
    except Exception as error:
        raise RunError(f"{constants.ENDPOINT} did not take the upload: {_reason(error)}. {state}.") from error


def _reason(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None and not isinstance(found, HfHubHTTPError):
        found = found.__cause__
    said = first_line(found or error)
    message = getattr(found, "server_message", None)
    if message and message not in said:
        said = f"{said} {' '.join(str(message).split())}"
    return said.replace(get_token() or "\0", "***").rstrip(". ")
