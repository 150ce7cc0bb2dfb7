"""Uploading an exported policy to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from pl_prefopt.errors import ConfigError, RunError, first_line


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
            ConfigError: for a name without a namespace, in offline mode, and without a token.
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
        with _explained("The export has not started"):
            HfApi().whoami()

    def push(self, folder: Path) -> str:
        """Upload a folder's files in place of the model's of the same names, and return the model's address.

        Raises:
            RunError: if the server refuses it or can't be reached.
            ConfigError: if the model exists with another visibility than ``private`` says.
        """
        api, state = HfApi(), f"{folder} is complete; upload it with `hf upload {self.name} {folder}`"
        with _explained(state):
            address = api.create_repo(self.name, private=self.private, exist_ok=True)
            is_private = api.model_info(self.name).private
        if self.private not in (None, is_private):
            raise ConfigError(
                f"Nothing was uploaded: expected {self.name} to be {_visibility(self.private)}, but it "
                f"exists and is {_visibility(is_private)}: change that in its settings on the hub. {state}."
            )
        with _explained(state):
            api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Upload a policy trained with pl_prefopt",
            )
        return f"{address} ({_visibility(is_private)})"


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
