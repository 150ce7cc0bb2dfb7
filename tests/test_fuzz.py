"""Whatever comes in, the answer is one sentence or a result, and every row is used or counted.

`PREFOPT_FUZZ=100 pytest tests/test_fuzz.py` tries a hundred times as much, ten thousand rows of each layout
among it, and other things each time.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import gzip
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch.cli import LightningCLI

from pl_prefopt.cli.main import main
from pl_prefopt.data import Cache, PreferenceDataset, Renderer
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.formats import FORMATS, as_fields, convert, relabelled, to_row
from pl_prefopt.data.joined_rows import JOINED_LAYOUTS, Joins, join_records
from pl_prefopt.data.layouts import OUR_LAYOUTS, Layout
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import PrefOptError
from tests.cli.test_commands import CONFIGS
from tests.data.support import stored
from tests.runs import pair_rows, scored_rows, write_rows
from tests.support import tiny_tokenizer

TIMES = int(os.environ.get("PREFOPT_FUZZ", "1"))


def tries(count: int, **others: Any) -> settings:
    return settings(
        **others,
        max_examples=count * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# -- rows

words = st.sampled_from(
    ["Hi", "Yes.", " ", "", "\n\nHuman: Hi\n\nAssistant: No", "\n\nHuman:", "<|im_end|>", "\ud800", "é你"]
)
texts = words | st.text(max_size=8)
numbers = st.integers(-3, 3) | st.floats() | st.just(10**400) | st.booleans()
anything = st.recursive(
    st.none() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["role", "content"]), inner)
    ),
    max_leaves=6,
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "User", ""])
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2)
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": texts | parts}, optional={"tool_calls": anything}),
    max_size=4,
)
turn = texts | messages
grades = numbers | st.sampled_from(["1", "nan", "high", None])
completions = st.fixed_dictionaries({"response": turn}, optional={"overall_score": grades, "rating": grades})
layouts = st.one_of(
    st.fixed_dictionaries({"prompt": turn, "chosen": turn, "rejected": turn}),
    st.fixed_dictionaries(
        {"chosen": turn, "rejected": turn}, optional={"score_chosen": grades, "score_rejected": grades}
    ),
    st.fixed_dictionaries(
        {"prompt": turn, "responses": st.lists(turn, max_size=4)},
        optional={"scores": st.lists(grades, max_size=4) | anything},
    ),
    st.fixed_dictionaries({"instruction": turn, "completions": st.lists(completions, max_size=3)}),
    st.fixed_dictionaries({"prompt": turn, "completion": turn, "label": grades}),
)
value = turn | grades | anything | anything.map(json.dumps) | st.lists(texts, max_size=3)
EXTRA = {"weight": grades, "source": value, "tools": value, "chat_template_kwargs": value, "thinking": value}
EXTRA |= {"context": value, "votes": st.lists(grades, max_size=3) | value, "prompt_rejected": value}
EXTRA |= {"annotator": value, "rationale": value, "strength": grades}


# Every layout with whatever its columns may hold, and what rows of all layouts may have.
def rows_of(layout: Layout) -> st.SearchStrategy[Any]:
    further = dict.fromkeys(sorted(set(layout.optional) - set(layout.columns)), value) | EXTRA
    return st.fixed_dictionaries(
        dict.fromkeys(layout.columns, value),
        optional={name: held for name, held in further.items() if name not in layout.columns},
    )


CHAT = [{"role": "user", "content": "Hi"}]
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
MESSAGE = {"message_tree_id": "1", "role": "assistant", "parent_id": "1", "lang": "en"}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        {"prompt": [*CHAT, {"role": "assistant", "content": "So, "}], "chosen": "yes", "rejected": "no"},
        {"chosen": ["Hi", "Yes."], "rejected": ["Hi", "No."], "score_chosen": [3], "score_rejected": [1]},
        {"prompt": "Hi", "chosen": ["Yes."], "rejected": ["No.", "Well."], "system": "Be brief."},
        {"chosen": [*CHAT, YES], "rejected": [*CHAT, NO], "chosen_rating": 4, "rejected_rating": 2},
    ],
    "ranked": [{"prompt": "Hi", "responses": ["Yes.", [NO]], "scores": [[1, 2], [0]], "votes": [3, 4]}],
    "UltraFeedback": [
        {"instruction": "Hi", "completions": [
            {"response": "Yes.", "overall_score": 4, "annotations": {"honesty": {"Rating": "4"}}},
            {"response": "No.", "overall_score": 2, "annotations": {"honesty": {"Rating": "N/A"}}}]}
    ],
    "unpaired": [{"prompt": "Hi", "completion": [YES], "label": True}],
    "prompt contrast": [{"prompt_chosen": "Hi", "prompt_rejected": "Ho", "completion": "Yes."}],
    "OpenAI": [
        {"input": {"messages": CHAT, "tools": []}, "preferred_output": [YES], "non_preferred_output": [NO]}
    ],
    "Nectar": [
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ",
         "answers": [{"answer": "Yes.", "rank": 1}, {"answer": "No.", "rank": 2}]}
    ],
    "graded generations": [
        {"prompt": "Hi", "all_generated_responses": ["Yes.", "No."], "all_rm_scores": [1, 0]}
    ],
    "HelpSteer2": [{"prompt": "Hi", "response_1": "Yes.", "response_2": "No.", "preference_strength": -2}],
    "HelpSteer3": [{"context": CHAT, "response1": "Yes.", "response2": "No.", "overall_preference": 2}],
    "PKU-SafeRLHF": [{"prompt": "Hi", "response_0": "Yes.", "response_1": "No.", "better_response_id": 1}],
    "SHP": [
        {"history": "Hi", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_A": 4,
         "score_B": 2}
    ],
    "WebGPT": [
        {"question": {"full_text": "Hi", "id": 1}, "answer_0": "Yes.", "answer_1": "No.", "score_0": 1,
         "score_1": -1}
    ],
    "stack-exchange-paired": [{"question": "Hi", "response_j": "Yes.", "response_k": "No."}],
    "JudgeBench": [{"question": "Hi", "response_A": "Yes.", "response_B": "No.", "label": "A>B"}],
    "Chatbot Arena": [{"conversation_a": [*CHAT, YES], "conversation_b": [*CHAT, NO], "winner": "model_a"}],
    "summarize_from_feedback": [
        {"info": {"post": "Hi", "title": "T"}, "summaries": [{"text": "Yes."}, {"text": "No."}], "choice": 0}
    ],
    "OpenAssistant trees": [
        {"message_tree_id": "1", "prompt": {"text": "Hi", "replies": [
            {"text": "Yes.", "rank": 0}, {"text": "No.", "rank": 1}, {"text": "Well.", "rank": None}]}}
    ],
    "HelpSteer2 ratings": [
        {"prompt": "Hi", "response": "Yes.", "helpfulness": 4, "verbosity": 1},
        {"prompt": "Hi", "response": "No.", "helpfulness": 2, "verbosity": 1},
    ],
    "OpenAssistant messages": [
        MESSAGE | {"message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter", "rank": None},
        MESSAGE | {"message_id": "2", "text": "Yes.", "rank": 0},
        MESSAGE | {"message_id": "3", "text": "No.", "rank": 1},
    ],
}  # fmt: skip
"""What each layout is like when nothing is wrong with it."""


@st.composite
def nearly(draw: st.DrawFn, name: str) -> list[Any]:
    """The rows of an example with up to two changes, anywhere in them."""
    rows = copy.deepcopy(EXAMPLES[name])
    mutate(rows, draw(mutations(value, fewest=0, most=2)))
    return rows


NAMES = [*(layout.name for layout in FORMATS), *(layout.name for layout in JOINED_LAYOUTS)]
formats = st.sampled_from(FORMATS).flatmap(rows_of)
keys = st.sampled_from([*(column for layout in FORMATS for column in layout.columns), *EXTRA])
broken = st.dictionaries(keys | texts, anything, max_size=4)
overlaid = st.tuples(layouts, st.dictionaries(keys, anything, max_size=1)).map(lambda two: two[0] | two[1])
rows = layouts | overlaid | formats | broken | anything


def test_every_layout_has_an_example(tmp_path: Path):
    assert sorted(EXAMPLES) == sorted(NAMES)
    for name, records in EXAMPLES.items():
        joins = Joins()
        read = join_records((Record("row", record) for record in records), joins=joins)
        found = {convert(record.fields).layout for record in read}
        assert (list(joins.rows) or list(found)) == [name]


def lines_of(records: list[Any]) -> list[str]:
    return [line for line in map(json.dumps, records) if line.strip()]


some = st.lists(rows, min_size=1, max_size=4) | st.sampled_from(NAMES).flatmap(nearly)


@tries(150)
@given(several=st.lists(some, min_size=1, max_size=2))
def test_rows_of_any_shape_are_used_or_counted(several: list[list[Any]]):
    check_counts([record for records in several for record in records])


@tries(100)
@given(records=some, further=st.dictionaries(keys | st.just("votes"), anything, max_size=2))
def test_a_row_is_the_same_with_other_labels(records: list[Any], further: dict[str, Any]):
    for record in (one | further for one in records if isinstance(one, dict)):
        try:
            before = convert(record)
        except BadRowError:
            continue
        count = len(before.row.responses)
        for labels, scores in (({"scores": [2.0] * count}, (2.0,) * count), ({"judge": "none"}, None)):
            fields = relabelled(record, before, labels)
            after = convert(fields).row
            assert (after.prompt, after.responses, after.scores) == (
                before.row.prompt,
                before.row.responses,
                scores,
            )
            for name in ("weight", "context", "prompt_rejected"):
                assert after.columns.get(name) == before.row.columns.get(name)


@pytest.mark.skipif(TIMES == 1, reason="the long run")
@pytest.mark.parametrize("name", NAMES)
def test_many_rows_of_a_layout_are_used_or_counted(name: str):
    wild = [rows_of(layout).map(lambda row: [row]) for layout in FORMATS if layout.name == name]
    wild += [layouts.map(lambda row: [row]) for layout in OUR_LAYOUTS if layout.name == name]

    @tries(5)
    @given(several=st.lists(st.one_of(nearly(name), *wild), min_size=20, max_size=20))
    def attempt(several: list[list[Any]]) -> None:
        check_counts([record for records in several for record in records])

    attempt()


def check_counts(records: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        path.write_text("\n".join(lines_of(records)))
        joins, reading = Joins(), open_source(Source.of(str(path)), Path(name))
        raw = list(reading.raw())
        found = list(join_records(raw, reading.mapped, joins))
        read, alone = len(found), {id(record) for record in raw} & {id(record) for record in found}
        assert len(alone) + sum(joins.rows.values()) == len(raw) == len(records)
        try:
            store = stored(str(path), Path(name) / "cache", on_bad_row="skip")
            data = PreferenceDataset.tokenised(
                store, RENDERER, cache=Cache(Path(name) / "cache"), on_bad_row="skip"
            )
        except PrefOptError:
            return
        assert len(store.rows) + store.skipped == read
        assert len(data) + data.summary.skipped == read
        batch = data.batch(range(len(data)))
        assert int(batch.present.sum()) == sum(len(row.responses) for row in data.rows)
        for row in store.rows:
            again = to_row(json.loads(json.dumps(as_fields(row))))
            columns = {name: value for name, value in again.columns.items() if name in row.columns}
            assert dataclasses.replace(again, origin=row.origin, columns=columns) == row
            assert again.columns.keys() - columns.keys() <= {"source"}, "one that is too large for a column"


RENDERER = Renderer(tiny_tokenizer(), max_prompt_length=16, max_response_length=8)


# -- files


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, pair_rows(1)[0])
    writer.writeheader()
    writer.writerows(pair_rows(3))
    return text.getvalue().encode()


def as_parquet() -> bytes:
    content = io.BytesIO()
    datasets.Dataset.from_list(pair_rows(3)).to_parquet(content)
    return content.getvalue()


FILES = {
    "rows.jsonl": "\n".join(map(json.dumps, pair_rows(3))).encode(),
    "rows.json": json.dumps(pair_rows(3)).encode(),
    "rows.csv": as_csv(),
    "rows.parquet": as_parquet(),
}
FILES |= {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in FILES.items()}


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good file of some kind of which a piece is replaced; sometimes nothing good is left."""
    name = draw(st.sampled_from(sorted(FILES)))
    content = FILES[name] if draw(st.integers(0, 9)) else b""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 20)) | st.just(len(content)))
    return name, content[:start] + draw(st.binary(max_size=12)) + content[end:]


@tries(25)
@given(file=damaged_files())
def test_damaged_files_give_rows_or_one_sentence(file: tuple[str, bytes]):
    name, content = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for on_bad_row in ("skip", "error"):
            try:
                store = stored(str(path), Path(folder) / "cache", on_bad_row=on_bad_row)
            except PrefOptError:
                continue
            assert len(store.rows) > 0
            assert on_bad_row == "skip" or not store.skipped
            if name == "rows.jsonl":
                lines = [line for line in content.split(b"\n") if line.strip()]
                assert len(store.rows) + store.skipped == len(lines)


# -- configurations


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model) -> dict[str, Any]:
    """A configuration that works."""
    folder = tmp_path_factory.mktemp("fuzz")
    merged: dict[str, Any] = {}
    for axis in ("base", "methods/dpo", "hardware/cpu"):
        merge(merged, yaml.safe_load((CONFIGS / f"{axis}.yaml").read_text()))
    merged["data"]["train"] = write_rows(folder / "rows.jsonl", scored_rows(6))
    merged["data"]["cache_dir"] = str(folder / "cache")
    merged["model"]["init_args"]["policy"]["name"] = str(tiny_model)
    merged["run_dir"] = str(folder / "run")
    return merged


def merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def places(config: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of a configuration, as the path to it."""
    items = (
        config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    )
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


plain = st.none() | st.booleans() | st.integers(-2, 10**9) | st.floats() | st.text("abc.é: {}[]", max_size=6)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("ab_", min_size=1, max_size=5), inner)
    ),
    max_leaves=4,
)


@st.composite
def mutations(
    draw: st.DrawFn, values: st.SearchStrategy[Any], *, fewest: int = 1, most: int = 3
) -> list[tuple[str, int, str, Any]]:
    """Some changes: what, where (a number, taken modulo the places), a key, a value."""
    how = st.sampled_from(["drop", "replace", "add"])
    key = st.text("abcdefgh_", min_size=1, max_size=6)
    change = st.tuples(how, st.integers(0, 10**6), key, values)
    return draw(st.lists(change, min_size=fewest, max_size=most))


def mutate(config: Any, changes: list[tuple[str, int, str, Any]]) -> None:
    for how, number, key, value in changes:
        if not (found := places(config)):
            return
        path = found[number % len(found)]
        owner: Any = config
        for step in path[:-1]:
            owner = owner[step]
        if how == "drop":
            del owner[path[-1]]
        elif how == "replace":
            owner[path[-1]] = value
        elif isinstance(owner, dict):
            owner[key] = value


def test_a_mutated_configuration_is_built_or_refused_in_a_sentence(whole, tmp_path, monkeypatch, capsys):
    # Everything up to the run itself, which a random number of epochs could make very long.
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, name: built.append(name))
    monkeypatch.chdir(tmp_path)
    built: list[str] = []

    # Each try builds the parser anew, a second or two: too long to search for a smaller example.
    @tries(5, phases=[Phase.generate])
    @given(changes=mutations(values))
    def attempt(changes: list[tuple[str, int, str, Any]]) -> None:
        config = copy.deepcopy(whole)
        mutate(config, changes)
        file = tmp_path / "mutated.yaml"
        file.write_text(yaml.safe_dump(config, allow_unicode=True))
        monkeypatch.setattr(sys, "argv", ["prefopt", "fit", "-c", str(file)])
        built.clear()
        status = exit_status()
        said = capsys.readouterr().err
        assert (status == 0 and built) or (status == 2 and said.strip()), (status, said)

    attempt()


def exit_status() -> int:
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
