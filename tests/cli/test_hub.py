"""`prefopt export --push-to-hub`, against a stub of the hub on the loopback device."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from pl_prefopt.cli.hub import HubModel
from pl_prefopt.evaluations import Evaluation, add_evaluation
from pl_prefopt.policies import PolicySpec
from tests.adapters import save_run
from tests.fake_hub import TOKEN, FakeHub, Model
from tests.runs import LORA


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """The checkpoint of a run with an adapter and a validation, and its policy."""
    folder = tmp_path_factory.mktemp("run") / "run"
    checkpoint, policy = save_run(folder, PolicySpec(name=str(tiny_model), lora=LORA))
    metrics = {"val/accuracy": 0.75, "val/accuracy_low": 0.51, "val/accuracy_high": 0.9}
    add_evaluation(folder / "metrics.json", Evaluation(metrics=metrics, step=1))
    return checkpoint, policy


def save_files(files: dict[str, bytes], folder: Path) -> Path:
    """Write a model's files as a clone of it has them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub that this test, and no other, is online with; its token is in the environment."""
    with FakeHub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Xet's servers are not part of the stub; without them files are sent as with git LFS.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_what_is_on_the_hub_is_the_policy_and_its_card(prefopt, hub, run):
    checkpoint, policy = run
    settings = ("--push-to-hub", "me/first", "--private", "true")
    printed = prefopt("export", checkpoint, "--out", "out", "--merge", "true", *settings)
    assert f"Uploaded it to {hub.url}/me/first (private)" in printed
    model = hub.models["me/first"]
    assert model.private
    written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert model.files == written
    ids = torch.arange(5, 45).reshape(2, 20)
    save_files(model.files, Path("fetched"))
    fetched = AutoModelForCausalLM.from_pretrained("fetched")
    with torch.no_grad():
        torch.testing.assert_close(fetched(input_ids=ids).logits, policy(input_ids=ids).logits)
    card = ModelCard.load("fetched/README.md").text.replace("\\", "")
    for part in ("from_pretrained", '"me/first"', "DPO", "## Data", "0.75", "0.51", "95 % interval"):
        assert part in card
    said = printed + "".join(content.decode(errors="replace") for content in model.files.values())
    assert TOKEN not in said
    assert {token for _, path, token in hub.requests if "/api/models/" in path} == {f"Bearer {TOKEN}"}


def test_a_merged_model_replaces_the_adapter_that_was_on_the_hub(prefopt, hub, run):
    checkpoint, policy = run
    prefopt("export", checkpoint, "--out", "adapter")
    address = HubModel("me/model").push(Path("adapter"))
    assert address == f"{hub.url}/me/model (public)"
    files = hub.models["me/model"].files
    assert "adapter_config.json" in files
    shards = {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    stale = {"heads.safetensors", "reward_model.json", *shards}
    kept = {"LICENSE", ".gitattributes", "images/model.safetensors", "onnx/config.json"}
    files.update(dict.fromkeys(stale | kept, b"there before"))
    printed = prefopt("export", checkpoint, "--out", "out", "--merge", "true", "--push-to-hub", "me/model")
    assert "(public), and deleted adapter_config.json, adapter_model.safetensors, heads.safet" in printed
    assert files.keys() == {path.name for path in Path("out").iterdir()} | kept
    assert [path for _, path, _ in hub.requests].count("/api/models/me/model/commit/main") == 2
    with torch.no_grad():
        fetched = AutoModelForCausalLM.from_pretrained(save_files(files, Path("fetched")))
        ids = torch.arange(5, 45).reshape(2, 20)
        torch.testing.assert_close(fetched(input_ids=ids).logits, policy(input_ids=ids).logits)
    # The other way round, the weights of the whole model go.
    assert ", and deleted config.json, " in HubModel("me/model").push(Path("adapter"))
    assert files.keys() == {path.name for path in Path("adapter").iterdir()} | kept


def test_an_adapter_of_a_local_base_is_not_uploaded(prefopt, hub, run, tiny_model):
    told = prefopt.fails("export", run[0], "--out", "out", "--push-to-hub", "me/mine")
    assert f"got the local folder {tiny_model}, which nobody else can load: use --merge true" in told
    assert "hf upload me/mine" in told
    assert not Path("out").exists()
    assert hub.models == {}


def test_an_existing_model_keeps_its_visibility_or_nothing_is_uploaded(prefopt, hub, run):
    hub.models["me/public"] = Model(private=False)
    arguments = ("export", run[0], "--merge", "true", "--push-to-hub", "me/public")
    told = prefopt.fails(*arguments, "--out", "first", "--private", "true")
    assert "Expected me/public to be private, but it exists and is public" in told
    assert "The export has not started." in told
    assert hub.models["me/public"].files == {}
    assert not Path("first").exists()
    assert "(public)" in prefopt(*arguments, "--out", "second")
    assert "model.safetensors" in hub.models["me/public"].files


REFUSED = {
    "no namespace": ({}, "mine", "use --push-to-hub NAMESPACE/mine"),
    "no name": ({}, "a/b/c", r"--push-to-hub: .*'a/b/c'"),
    "no token": ({"HF_TOKEN": ""}, "me/mine", "set HF_TOKEN, or log in with `hf auth login`"),
    "another's token": (
        {"HF_TOKEN": "hf_wrong"},
        "me/mine",
        r"Invalid user token.* The export has not started",
    ),
    "another's namespace": (
        {},
        "them/mine",
        r"don't have the rights.* out is complete.*hf upload them/mine out",
    ),
}


@pytest.mark.parametrize(("environment", "name", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_refused_upload_is_one_sentence(
    prefopt, hub, run, monkeypatch, tmp_path, environment, name, reason
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    status, told = prefopt.run("export", run[0], "--out", "out", "--merge", "true", "--push-to-hub", name)
    assert status in (1, 2)
    assert "Traceback" not in told
    (line,) = (line for line in told.splitlines() if line.startswith("prefopt: "))
    assert re.search(reason, line)
    assert "hf_" not in line
    assert Path("out").exists() == (name == "them/mine")
    assert hub.models == {}


def test_offline_nothing_is_asked(prefopt, hub, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = prefopt.fails("export", run[0], "--out", "out", "--push-to-hub", "me/mine")
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in told
    assert "hf upload me/mine out" in told
    assert "add --push-to-hub" in prefopt.fails("export", run[0], "--out", "out", "--private", "true")
    assert hub.requests == []
    assert not Path("out").exists()


def test_a_server_that_is_away_is_named(prefopt, hub, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    status, told = prefopt.run("export", run[0], "--out", "out", "--push-to-hub", "me/mine")
    assert status == 1
    assert "prefopt: http://127.0.0.1:9 did not take the upload: " in told
