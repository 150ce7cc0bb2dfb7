"""Engines: what is sampled, its seeds and log-probs, and the server protocol against a fake one."""

from __future__ import annotations

import atexit
import errno
import functools
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import decoders

from pl_prefopt.cli.sample import checked_prompt
from pl_prefopt.data import Prompts, Renderer
from pl_prefopt.data.formats import to_prompt, to_row
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import ConfigError, DataError, RunError
from pl_prefopt.generation import (
    Engine,
    OpenAIServer,
    Sample,
    SampleFolder,
    Sampler,
    Sampling,
    Server,
    ShardWriter,
    TransformersEngine,
    pick,
    read_shards,
    shard_files,
)
from pl_prefopt.processes import run_forked, run_logged, start, stop
from tests.support import tiny_llama, tiny_tokenizer

PROMPTS = [[5, 9, 30], [7], [20, 21, 22, 23, 24], [9, 9]]
END = 2


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def engine_of(model) -> TransformersEngine:
    return TransformersEngine(lambda: model, end=END, identity="tiny")


def sampled(model, prompts, sampling: Sampling, *, first: int = 0):
    with engine_of(model) as engine:
        seeds = [sampling.seeds(first + place) for place in range(len(prompts))]
        return engine.sample(prompts, seeds, sampling)


def test_a_sample_depends_on_its_own_seed_alone(model):
    sampling = Sampling(n=3, max_new_tokens=8)
    together = sampled(model, PROMPTS, sampling)
    for number, prompt in enumerate(PROMPTS):
        (alone,) = sampled(model, [prompt], Sampling(n=2, max_new_tokens=8), first=number)
        assert [one.token_ids for one in alone] == [one.token_ids for one in together[number][:2]]
    assert len({tuple(one.token_ids) for own in together for one in own}) == 12


def test_a_prompt_is_computed_once_for_all_its_samples(model, monkeypatch):
    seen = []
    plain = type(model).forward

    @functools.wraps(plain)
    def counted(self, input_ids=None, **given):
        seen.append(input_ids.shape)
        return plain(self, input_ids=input_ids, **given)

    monkeypatch.setattr(type(model), "forward", counted)
    sampled(model, PROMPTS, Sampling(n=3, max_new_tokens=2))
    assert seen[:2] == [(4, 4), (12, 1)]  # all tokens but the last of 4 prompts, then a step of 12 samples


def test_log_probs_are_those_of_a_plain_forward_pass(model):
    model.generation_config.repetition_penalty = 5.0  # which would change the distribution
    try:
        samples = sampled(model, PROMPTS, Sampling(n=2, max_new_tokens=8, temperature=0.7, top_p=0.9))
    finally:
        model.generation_config.repetition_penalty = None
    for prompt, own in zip(PROMPTS, samples, strict=True):
        for one in own:
            logits = model(input_ids=torch.tensor([prompt + one.token_ids])).logits[0]
            plain = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            expected = plain.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(one.log_probs), expected, atol=1e-5, rtol=0)
            assert one.finish_reason == ("stop" if one.token_ids[-1] == END else "length")
            assert END not in one.token_ids[:-1]


def test_greedy_samples_are_those_of_generate(model):
    samples = sampled(model, PROMPTS, Sampling(n=1, temperature=0, max_new_tokens=6))
    for prompt, (one,) in zip(PROMPTS, samples, strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        assert one.token_ids == plain[0, len(prompt) :].tolist()


def test_a_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(DataError, match="set max_prompt_length to at most 504"):
        sampled(model, [[5] * 505], Sampling(n=1, max_new_tokens=8))


def test_picked_tokens_have_the_probabilities_of_the_settings():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -torch.inf, -1.0]]).double()
    uniform = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    for settings, kept in (
        ({"temperature": 2.0, "top_p": 1.0, "top_k": 0}, [0, 1, 2, 3, 5]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [0, 1]),
        ({"temperature": 1.0, "top_p": 0.75, "top_k": 0}, [0, 1]),  # .58 and .21
        ({"temperature": 1.0, "top_p": 0.5, "top_k": 0}, [0]),
    ):
        picked = pick(logits.expand(20_000, -1), uniform, **settings)
        shares = torch.bincount(picked, minlength=6) / 20_000
        expected = torch.zeros(6, dtype=torch.float64)
        expected[kept] = (logits[0, kept] / settings["temperature"]).softmax(-1)
        torch.testing.assert_close(shares.double(), expected, atol=2e-4, rtol=0)
    end = torch.tensor([1 - 1e-16], dtype=torch.float64)
    assert pick(logits, end, temperature=1.0, top_p=1.0, top_k=0).item() == 5


class _Fake(BaseHTTPRequestHandler):
    """Completes a prompt by its last token and the seed's last digit."""

    kind, key = "ids", None

    def do_GET(self):
        if not self._leaks():
            self._answer({"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (body["n"], body["stop_token_ids"], body["model"]) == (1, [END], "tiny")
        ids = [body["prompt"][-1], 10 + body["seed"] % 10, END]
        told = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": [-1.0, -2.0, -0.5]}
        choice = {"text": "some text", "finish_reason": "stop", "logprobs": told}
        if self.kind == "text":
            choice["logprobs"] = None
        choices = [] if self.kind == "fewer" else [choice]
        if not self._leaks():
            self._answer({"choices": choices})

    def _leaks(self):
        """Answer with the key, as some servers do that refuse it, unless it is the right one."""
        key = self.headers["Authorization"]
        if self.key is None or (key == f"Bearer {self.key}" and self.kind != "leak"):
            return False
        self._answer({"error": {"message": f"the key {key} is wrong"}}, status=401)
        return True

    def _answer(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Fake) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def served(folder: Path, server: Server, *, allowed: bool = False) -> OpenAIServer:
    return OpenAIServer(
        server,
        policy=lambda: "the-policy",
        identity="tiny",
        ends=[END],
        log=folder / "engine.log",
        allowed=allowed,
    )


def test_a_server_gives_token_ids_or_text_or_is_refused(url, tmp_path, monkeypatch):
    sampling = Sampling(n=2, max_new_tokens=8)
    seeds = [sampling.seeds(place) for place in range(4)]
    with served(tmp_path, Server(url=url, retries=0)) as engine:
        samples = engine.sample(PROMPTS, seeds, sampling)
        for prompt, own, theirs in zip(PROMPTS, samples, seeds, strict=True):
            assert [one.token_ids for one in own] == [[prompt[-1], 10 + s % 10, END] for s in theirs]
            assert [one.seed for one in own] == theirs
            assert own[0].log_probs == [-1.0, -2.0, -0.5]
        monkeypatch.setattr(_Fake, "kind", "text")
        (first, _), *_ = engine.sample(PROMPTS, seeds, sampling)
        assert (first.text, first.token_ids, first.log_probs) == ("some text", [], [])
        monkeypatch.setattr(_Fake, "kind", "fewer")
        with pytest.raises(RunError, match="an answer without 'choices'"):
            engine.sample(PROMPTS, seeds, sampling)


def test_the_key_of_an_engine_goes_to_the_server_alone(url, tmp_path, monkeypatch, capsys):
    key = "a-very-secret-key-0123456789"
    monkeypatch.setattr(_Fake, "key", key)
    monkeypatch.setattr("pl_prefopt.generation.server._PATIENCE", 0.0)
    rows = [(number, to_prompt({"prompt": f"Say {number}."})) for number in range(2)]

    def run():
        engine = served(tmp_path, Server(url=url, retries=0, key_variable="ENGINE_KEY"))
        sampler = Sampler(
            engine, Renderer(tiny_tokenizer()), Sampling(n=2), SampleFolder(folder=tmp_path / "out")
        )
        return sampler.run(rows, 2, content="", say=print)

    with pytest.raises(ConfigError, match="environment variable ENGINE_KEY"):
        run()
    monkeypatch.setenv("ENGINE_KEY", key)
    monkeypatch.setattr(_Fake, "kind", "leak")
    with pytest.raises(RunError, match=r"HTTP 401 \(the key Bearer \*\*\* is wrong\)") as refused:
        run()
    monkeypatch.setattr(_Fake, "kind", "ids")
    assert run()["samples"] == 4
    written = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".log")]
    written += [str(pq.read_table(path).to_pylist()) for path in tmp_path.rglob("*.parquet")]
    assert len(written) >= 2
    assert not any(key in text for text in [*written, *capsys.readouterr(), str(refused.value)])


def test_a_command_needs_permission_and_is_waited_for_watched_and_stopped(tmp_path):
    code = (
        "import sys, http.server as h\n"
        "class F(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        '        self.wfile.write(b\'{"data": [{"id": "%s"}]}\' % sys.argv[1].encode())\n'
        "    def do_POST(self):\n"
        "        print('no memory left', flush=True); import os; os._exit(3)\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[2])), F).serve_forever()\n"
    )
    server = Server(command=[sys.executable, "-c", code, "{policy}", "{port}"], retries=0)
    with pytest.raises(ConfigError, match="`--allow_commands true`"):
        served(tmp_path, server)
    sampling = Sampling(n=1, max_new_tokens=8)
    with served(tmp_path, server, allowed=True) as engine:
        assert engine._served == "the-policy"
        process = engine._process
        with pytest.raises(RunError, match="failed 1 times"):
            engine.sample([[5]], [[1]], sampling)
    assert process.poll() is not None
    dead = Server(command=[sys.executable, "-c", "raise SystemExit('no GPU here')", "{port}"])
    with pytest.raises(RunError, match=r"didn't start: its command ended with status 1; .*'no GPU here'"):
        served(tmp_path, dead, allowed=True).__enter__()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    assert run_logged([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "log") == -9
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    started = start([sys.executable, "-c", code], tmp_path / "pid")
    while not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    stop(started)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_shards_go_on_after_a_torn_batch(tmp_path):
    rows = [{"number": number, "texts": ["a", "é"]} for number in range(11)]
    writer = ShardWriter(tmp_path, rows_per_shard=4, kind="jsonl")
    for first in range(0, 6, 2):
        writer.append(rows[first : first + 2])
    with (tmp_path / ".unfinished.jsonl").open("a") as journal:
        journal.write('{"shard": 1, "rows": [{"num')  # the process was killed here
    again = ShardWriter(tmp_path, rows_per_shard=4, kind="jsonl")
    assert again.rows == 6
    (tmp_path / ".unfinished.jsonl").write_text(
        json.dumps({"shard": 0, "rows": rows[:6]}) + "\n"  # killed between a shard and its journal
    )
    again = ShardWriter(tmp_path, rows_per_shard=4, kind="jsonl")
    assert again.rows == 6
    again.append(rows[6:])
    again.finish()
    assert list(read_shards(tmp_path)) == rows
    assert [len(file.read_text().splitlines()) for file in sorted(tmp_path.glob("part-*"))] == [4, 4, 3]


def test_shards_hold_what_their_rows_hold(tmp_path):
    said = [{"role": "user", "content": "Hi\u2028there"}]
    kinds = {"a": {"type": "int"}}, {"b": {"type": "str", "values": [1, "2", None]}}
    tools = [{"name": f"f{place}", "parameters": one} for place, one in enumerate(kinds)]
    calls = [
        {"function": {"name": "f0", "arguments": {"a": 1}}},
        {"function": {"name": "f1", "arguments": {}}},
    ]
    rows = [
        {"prompt": said, "number": 0},
        {"prompt": said, "number": 1, "tools": tools},  # a column that the first row lacks
        {"prompt": [{**said[0], "name": "Ann"}], "number": 2, "chat_template_kwargs": {"brief": None}},
        {"prompt": [*said, {"role": "assistant", "content": "", "tool_calls": calls}, *said], "number": 3},
        {"prompt": said, "number": 4, "mixed": "text"},
        {"prompt": said, "number": 5, "mixed": ["list"]},
    ]
    writer = ShardWriter(tmp_path, rows_per_shard=3)
    writer.append(rows)
    writer.finish()
    # Arrow would give the arguments of both calls the same keys: such rows are JSON.
    assert [path.name for path in shard_files(tmp_path)] == ["part-00000.parquet", "part-00001.jsonl"]
    assert ShardWriter(tmp_path, rows_per_shard=3)._shards == 2
    read = list(read_shards(tmp_path))
    assert [to_prompt(row) for row in read] == [to_prompt(row) for row in rows]
    assert [row.get("mixed") for row in read] == [None] * 4 + ["text", ["list"]]
    source = open_source(Source(path=str(tmp_path)), tmp_path / "scratch")
    assert [to_prompt(record.fields) for record in source.raw()] == [to_prompt(row) for row in rows]


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch):
    rows = [{"number": number} for number in range(7)]
    writer = ShardWriter(tmp_path, rows_per_shard=3, kind="jsonl")
    writer.append(rows[:2])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space left") as told:
            writer.append(rows[2:])
    assert told.value.filename.endswith(".unfinished.jsonl")
    again = ShardWriter(tmp_path, rows_per_shard=3, kind="jsonl")
    assert again.rows == 2
    with monkeypatch.context() as patch:
        patch.setattr("pl_prefopt.generation.shards.write_shard", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space left"):
            again.append(rows[2:])
    last = ShardWriter(tmp_path, rows_per_shard=3, kind="jsonl")
    assert last.rows == 7
    last.finish()
    assert list(read_shards(tmp_path)) == rows
    assert [len(file.read_text().splitlines()) for file in sorted(tmp_path.glob("part-*"))] == [3, 3, 1]


def test_an_engine_that_returns_fewer_prompts_or_samples_is_refused(tmp_path):
    class Short(Engine):
        identity, prompts, samples = "short", 2, 1

        def sample(self, prompts, seeds, sampling):
            own = [Sample([5, END], [], "stop", 0)] * self.samples
            return [own] * self.prompts

    rows = [(number, to_prompt({"prompt": f"Say {number}."})) for number in range(2)]
    sampling, renderer = Sampling(n=2, max_new_tokens=4), Renderer(tiny_tokenizer())
    for prompts, samples, said in (
        (1, 2, "samples of 2 prompts from the engine, got 1"),
        (2, 1, "2 samples of"),
    ):
        engine = Short()
        engine.prompts, engine.samples = prompts, samples
        folder = tmp_path / f"{prompts}-{samples}"
        sampler = Sampler(engine, renderer, sampling, SampleFolder(folder=folder))
        with pytest.raises(RunError, match=said):
            sampler.run(rows, 2, content="", say=print)
        assert not list(folder.glob("part-*"))


def test_a_prompt_that_cannot_be_sampled_for_is_told_before_anything_is_sampled(tmp_path):
    texts = ("Say 1.", "Say 2, " + "please " * 40, "Say <|im_start|>.")
    renderer, sampling = Renderer(tiny_tokenizer()), Sampling(max_new_tokens=8)
    chosen = SimpleNamespace(spec=SimpleNamespace(context_length=lambda: 100))
    for place, said in (
        (0, None),
        (1, r"row 2: a prompt of \d+ tokens .*max_prompt_length to at most 92"),
        (2, "row 3"),
    ):
        (tmp_path / "prompts.jsonl").write_text(
            "".join(f'{{"prompt": "{text}"}}\n' for text in texts[: place + 1])
        )
        prompts = Prompts(source=str(tmp_path / "prompts.jsonl"), part=(place + 1, place + 1))
        if said is None:
            assert prompts.open(tmp_path, checked_prompt(chosen, renderer, sampling))[1] == 1
            continue
        with pytest.raises(DataError, match=said):
            prompts.open(tmp_path, checked_prompt(chosen, renderer, sampling))


def test_a_sample_that_continues_a_turn_keeps_its_first_space(tmp_path):
    tokenizer = tiny_tokenizer()
    byte_level = decoders.ByteLevel()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([byte_level, decoders.Strip(" ", 1, 0)])

    class Fixed(Engine):
        identity = "fixed"

        def sample(self, prompts, seeds, sampling):
            ids = tokenizer(" it is.", add_special_tokens=False)["input_ids"]
            return [[Sample([*ids, END], [], "stop", 0)] for _ in prompts]

    asked = {"role": "user", "content": "What is it?"}
    rows = [
        (0, to_prompt({"prompt": [asked, {"role": "assistant", "content": "Here"}]})),
        (1, to_prompt({"prompt": [asked]})),
    ]
    out = SampleFolder(folder=tmp_path, kind="jsonl")
    Sampler(Fixed(), Renderer(tokenizer), Sampling(n=1), out).run(rows, 2, content="", say=print)
    assert [row["responses"] for row in read_shards(tmp_path)] == [[" it is."], ["it is."]]


def test_the_columns_of_a_prompt_give_its_samples_no_second_meaning(tmp_path):
    tokenizer = tiny_tokenizer()

    class Twice(Engine):
        identity = "twice"

        def sample(self, prompts, seeds, sampling):
            ids = tokenizer("Fine.", add_special_tokens=False)["input_ids"]
            return [[Sample([*ids, END], [], "stop", seed) for seed in own] for own in seeds]

    further = {"answers": "x", "votes": "[3, 4]", "number": 7, "judge": "j", "preference": 0.9}
    kept = {"context": "Be brief.", "source": "s", "prompt_rejected": "How?", "id": 5, "rated": [1, 2]}
    row = to_prompt({"question": "Who?", "chosen": "I.", "rejected": "You.", **further, **kept})
    out = SampleFolder(folder=tmp_path, kind="jsonl")
    Sampler(Twice(), Renderer(tokenizer), Sampling(n=2), out).run([(0, row)], 1, content="", say=print)
    (written,) = read_shards(tmp_path)
    assert {name: written[f"original_{name}"] for name in further} == further
    assert (written["number"], written["responses"]) == (0, ["Fine.", "Fine."])
    assert written.keys().isdisjoint({"rated", "chosen", "rejected", *further} - {"number"})
    read = to_row(written)
    assert (read.prompt, read.scores, read.source) == (row.prompt, None, "s")
    for name in ("context", "prompt_rejected", "id"):
        assert read.columns[name] == row.columns[name]


@pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")
def test_a_stage_is_a_fork_that_ends_with_the_process_that_started_it(tmp_path):
    assert run_forked(lambda: os.write(1, b"said\n"), tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == "said\n"
    assert run_forked(lambda: sys.exit(3), tmp_path / "log") == 3
    assert run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "log") == -9
    assert run_forked(lambda: 1 / 0, tmp_path / "log") == 1
    ours, theirs = tmp_path / "of this process", tmp_path / "of the fork"
    atexit.register(ours.touch)
    assert run_forked(lambda: atexit.register(theirs.touch), tmp_path / "log") == 0
    atexit.unregister(ours.touch)
    assert theirs.exists()
    assert not ours.exists()

    def forever():
        os.write(1, str(os.getpid()).encode())
        time.sleep(600)

    starter = os.fork()
    if starter == 0:
        run_forked(forever, tmp_path / "pid")
        os._exit(0)
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)
