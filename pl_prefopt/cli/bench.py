"""`prefopt bench`: scores a judge, a reward model or stored outputs on a public benchmark."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pl_prefopt.benchmarks import BENCHMARKS, Benchmark, Result, alpaca_eval, ask_all, ifeval, read_tasks
from pl_prefopt.benchmarks.orders import with_orders
from pl_prefopt.cli.config_diagnostics import make_importable
from pl_prefopt.cli.label import check_judge
from pl_prefopt.cli.parser import Parser
from pl_prefopt.cli.run_lock import alone_in
from pl_prefopt.data.file_readers import Record
from pl_prefopt.data.sources import Source, open_source
from pl_prefopt.errors import ConfigError, DataError, first_line, listed, suggest
from pl_prefopt.files import atomic_write, without_dots
from pl_prefopt.judges import Judge

RESULT = "result.json"


class Scored(NamedTuple):
    """A benchmark's result, and what else its file says."""

    result: Result
    more: dict[str, Any]


def bench(arguments: list[str]) -> None:
    """Run ``prefopt bench`` with the given command-line arguments."""
    parser = Parser(
        prog="prefopt bench", description="Score a judge or a reward model on a public benchmark."
    )
    names = [*BENCHMARKS, *_STORED]
    parser.add_argument("name", type=str, help=f"One of {', '.join(names)}.")
    parser.add_argument(
        "--judge",
        type=Judge,
        sub_configs=True,
        help="The judge: a class with its settings as --judge.NAME VALUE, or a YAML file.",
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="A file, a folder or a data set of the hub."
    )
    parser.add_argument("--split", type=str | None, default=None, help="The split of a data set of the hub.")
    parser.add_argument("--out", type=str | None, default=None, help="A folder for verdicts and result.json.")
    parser.add_argument(
        "--partial", type=bool, nargs="?", const=True, default=False, help="Score a part of the benchmark."
    )
    parser.add_argument("--ignore", type=str, nargs="*", default=[], help="Columns and subsets to leave out.")
    parser.add_argument("--gamed", type=str | None, default=None, help="AlpacaEval's df_gamed.csv.")
    parser.add_argument(
        "--responses", type=str | None, default=None, help="Of IFEval, a file with `prompt` and `response`."
    )
    make_importable([word.rpartition("=")[2] for word in arguments])
    check_judge(arguments)
    settings = parser.parse_args(arguments)
    if settings.name not in names:
        raise ConfigError(
            f"expected a benchmark among {', '.join(names)}, got '{settings.name}'"
            f"{suggest(settings.name, names) or '.'}"
        )
    out = without_dots(Path(settings.out or f"bench/{settings.name}"))
    if settings.name in BENCHMARKS:
        judge = parser.instantiate(settings).judge
        scored = _ask(BENCHMARKS[settings.name](), judge, settings, out)
    else:
        scored = _STORED[settings.name](settings)
    with atomic_write(out / RESULT) as draft:
        written = {**scored.result.to_json(), **scored.more, "partial": settings.partial}
        draft.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print("\n".join(scored.result.lines()))
    print(f"Wrote {out / RESULT}")


def _ask(benchmark: Benchmark, judge: Judge | None, settings: Any, out: Path) -> Scored:
    if judge is None:
        raise ConfigError(
            f"{benchmark.title} needs a judge: type --judge CLASS, one of `prefopt list judges`."
        )
    source = _source(settings, benchmark.title, benchmark.hub, benchmark.split)
    read = read_tasks(benchmark, source, ignore=settings.ignore, partial=settings.partial)
    busy = f"another process is asking a judge for {out}: wait until it ends, or choose another --out."
    with alone_in(out, busy=busy), judge:
        answers, cost = ask_all(benchmark, judge, read.tasks, content_key=read.content_key, folder=out)
        result = with_orders(benchmark.score(answers, judge.gives), answers)
        result = _noted(result, read.missing)
        more = {
            "judge": judge.name,
            "judge_fingerprint": judge.fingerprint(),
            "data": source.path,
            "cost": dataclasses.asdict(cost),
            "missing": read.missing,
        }
    return Scored(result, more)


def _noted(result: Result, missing: list[str]) -> Result:
    """Return a result of a part of a benchmark with a sentence that says so."""
    if not missing:
        return result
    note = (
        f"Not the whole benchmark, so not to be compared with published numbers: {listed(missing, most=3)}."
    )
    return dataclasses.replace(result, notes=(*result.notes, note))


def _source(settings: Any, title: str, hub: str = "", split: str = "train") -> Source:
    path = settings.data or hub
    if not path:
        raise ConfigError(f"{title} needs its file: type --data FILE.")
    return Source(path=path, split=settings.split or split)


def _records(source: Source) -> list[Record]:
    with tempfile.TemporaryDirectory() as scratch:
        return list(open_source(source, Path(scratch)).raw())


def _alpaca_eval(settings: Any) -> Scored:
    source = _source(settings, "AlpacaEval 2")
    annotations = alpaca_eval.read_annotations(_records(source))
    gamed = alpaca_eval.read_gamed(_gamed_file(settings.gamed)) if settings.gamed else None
    result = alpaca_eval.score(annotations, gamed, partial=settings.partial)
    return Scored(result, {"data": source.path})


def _gamed_file(given: str) -> Path:
    """Return the path of df_gamed.csv; ``hub`` stands for the published file."""
    if given != "hub":
        return Path(given)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("tatsu-lab/alpaca_eval", "df_gamed.csv", repo_type="dataset"))
    except Exception as error:
        raise DataError(
            f"could not fetch df_gamed.csv of tatsu-lab/alpaca_eval from the hub ({first_line(error)}): give "
            "its path with --gamed."
        ) from error


def _ifeval(settings: Any) -> Scored:
    if not settings.responses:
        raise ConfigError("IFEval needs responses: type --responses FILE with `prompt` and `response`.")
    source = _source(settings, "IFEval", ifeval.HUB)
    tasks = ifeval.read_tasks(_records(source), partial=settings.partial)
    responses = ifeval.read_responses(_records(Source(path=settings.responses)))
    return Scored(ifeval.score(tasks, responses), {"data": source.path, "responses": settings.responses})


_STORED: dict[str, Callable[[Any], Scored]] = {"alpaca_eval": _alpaca_eval, "ifeval": _ifeval}
"""The benchmarks that score stored outputs."""
