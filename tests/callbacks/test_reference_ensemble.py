"""The Reference-Ensemble: what each member gives, and that computing it once changes nothing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.data import Renderer, collate
from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.modules import DPOModule, ReferenceFreeModule
from pl_prefopt.objectives import DPO, KTO, SimPO
from pl_prefopt.policies import FourBit, PolicySpec, build_frozen, build_policy
from pl_prefopt.references import AdapterOff, FrozenModel, NamedAdapter, PrecomputedTable, Reference
from pl_prefopt.references import frozen as frozen_module
from pl_prefopt.references import precompute as precompute_module
from pl_prefopt.scoring import Scorer
from pl_prefopt.types import PLAIN
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows
from tests.support import CHATML, save_tiny_model, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A model with other weights, another vocabulary and another template."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = tiny_tokenizer(chat_template=CHATML.replace("<|im_start|>", "### "), vocab_size=320)
    tiny_llama(len(tokenizer), seed=5, hidden=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sibling_model(tmp_path_factory):
    """A model with other weights and the policy's tokeniser."""
    return save_tiny_model(tmp_path_factory.mktemp("sibling"), seed=3)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A saved adapter that changes its base."""
    torch.manual_seed(1)
    policy = build_policy(lora_spec(tiny_model))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    policy.save_pretrained(folder)
    return folder


class Keep(Callback):
    """Keeps the references' log-probs of every validation row."""

    def __init__(self):
        self.found, self.present = {}, {}

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        for position, index in enumerate(batch.index.tolist()):
            self.found[index] = batch.references["plain"][:, position]
            self.present[index] = batch.present[position]

    def table(self):
        width = max(len(mask) for mask in self.present.values())
        rows = []
        for index in sorted(self.found):
            values = self.found[index].masked_fill(~self.present[index], 0.0)
            rows.append(torch.nn.functional.pad(values, (0, width - values.shape[1])))
        return torch.stack(rows, dim=1)


def gather(folder, module, ensemble, *, rows=None, **data):
    """Validate and return float32 [K, rows, R], 0 where absent."""
    keep = Keep()
    datamodule = make_datamodule(folder, rows or scored_rows(), **data)
    make_trainer(folder, ensemble, keep).validate(module, datamodule, verbose=False)
    return keep.table(), datamodule


def scored_by(model, datamodule, renderer=None):
    """What ``model`` gives all validation rows in one plain batch."""
    dataset = datamodule.datasets["val"]
    tree = dataset.batch(range(len(dataset))).trees[PLAIN]
    if renderer is not None:
        tree = collate([renderer.encode(row) for row in dataset.rows])
    with torch.no_grad():
        return Scorer("plain")(model.eval(), tree).sum


def test_every_member_gives_its_own_log_probs_in_order(
    tiny_model, sibling_model, other_model, adapter, tmp_path
):
    members = [
        AdapterOff(),
        NamedAdapter(str(adapter)),
        FrozenModel(PolicySpec(name=str(sibling_model))),
        FrozenModel(PolicySpec(name=str(other_model))),
    ]
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    table, datamodule = gather(tmp_path, module, ReferenceEnsemble(members))
    assert table.dtype == torch.float32
    specs = [
        PolicySpec(name=str(tiny_model)),
        PolicySpec(name=str(tiny_model), adapter=str(adapter)),
        PolicySpec(name=str(sibling_model)),
        PolicySpec(name=str(other_model)),
    ]
    other = Renderer(specs[3].load_tokenizer())
    for number, spec in enumerate(specs):
        expected = scored_by(build_frozen(spec), datamodule, other if number == 3 else None)
        torch.testing.assert_close(table[number], expected, atol=2e-3, rtol=1e-5)
    assert (table[0] - table[1]).abs().max() > 1


def test_a_named_adapter_leaves_the_policy_as_it_was(tiny_model, adapter, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO())
    trainer = make_trainer(tmp_path, ReferenceEnsemble([NamedAdapter(str(adapter))]), limit_train_batches=2)
    trainer.fit(module, make_datamodule(tmp_path))
    assert module.policy.active_adapter == "default"
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    assert set(module.state_dict()) == set(trained)


def test_a_named_adapter_leaves_every_part_in_its_mode(tiny_model, adapter):
    policy = build_policy(lora_spec(tiny_model))
    policy.get_base_model().model.norm.eval()
    before = {name: part.training for name, part in policy.named_modules()}
    NamedAdapter(str(adapter)).prepare(SimpleNamespace(policy=policy), {})
    after = {name: part.training for name, part in policy.named_modules()}
    assert {name: after[name] for name in before} == before
    assert set(before.values()) == {True, False}
    assert len(after) > len(before)
    assert not any(training for name, training in after.items() if name not in before)


def test_a_fully_trained_policy_has_no_adapter_to_switch_off(tiny_model, adapter, tmp_path):
    for member in (AdapterOff(), NamedAdapter(str(adapter))):
        module = DPOModule(PolicySpec(name=str(tiny_model)), DPO())
        with pytest.raises(ContractError, match="needs a policy with an adapter"):
            make_trainer(tmp_path, ReferenceEnsemble([member])).fit(module, make_datamodule(tmp_path))


def test_a_fully_trained_policy_starts_at_its_frozen_self(tiny_model, tmp_path):
    spec = PolicySpec(name=str(tiny_model))
    trainer = make_trainer(tmp_path, ReferenceEnsemble([FrozenModel(spec)]))
    (metrics,) = trainer.validate(DPOModule(spec, DPO()), make_datamodule(tmp_path), verbose=False)
    assert metrics["val/margin"] == 0


def test_a_missing_adapter_is_refused_before_any_model_loads(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO())
    ensemble = ReferenceEnsemble([NamedAdapter(str(tmp_path))])
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        make_trainer(tmp_path, ensemble).fit(module, make_datamodule(tmp_path))


def ensemble_with_cache(folder, *members, **settings):
    return ReferenceEnsemble(list(members), precompute=True, cache_dir=str(folder / "tables"), **settings)


def test_precomputed_log_probs_equal_those_computed_online(tiny_model, other_model, tmp_path):
    def members():
        return [AdapterOff(), FrozenModel(PolicySpec(name=str(other_model)))]

    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    online, _ = gather(tmp_path, module, ReferenceEnsemble(members()))
    cached, _ = gather(tmp_path, module, ensemble_with_cache(tmp_path, *members(), batch_size=3))
    torch.testing.assert_close(cached, online, atol=1e-4, rtol=1e-5)


def test_training_from_the_table_equals_training_online(tiny_model, tmp_path):
    weights = []
    for ensemble in (ReferenceEnsemble([AdapterOff()]), ensemble_with_cache(tmp_path, AdapterOff())):
        torch.manual_seed(0)
        module = DPOModule(
            lora_spec(tiny_model), KTO(desirable_above=4.0), optimizer=lambda p: torch.optim.SGD(p, lr=0.5)
        )
        make_trainer(tmp_path, ensemble).fit(module, make_datamodule(tmp_path))
        weights.append(module.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4)


def test_a_second_run_loads_no_reference_model(tiny_model, sibling_model, tmp_path, monkeypatch):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    reference = FrozenModel(PolicySpec(name=str(sibling_model)))
    first, _ = gather(tmp_path, module, ensemble_with_cache(tmp_path, reference))
    assert reference.model is None
    monkeypatch.setattr(frozen_module, "build_frozen", lambda spec: pytest.fail("the model was loaded"))
    again = ensemble_with_cache(tmp_path, FrozenModel(PolicySpec(name=str(sibling_model))))
    second, _ = gather(tmp_path, module, again)
    assert torch.equal(first, second)


class Counting(Reference):
    """Gives −length, counts the rows it scores, and can be killed."""

    def __init__(self, fatal=None):
        self.rows, self.fatal = [], fatal

    def fingerprint(self, policy):
        return "counting"

    def prepare(self, host, datasets):
        pass

    def log_probs(self, host, batch, view):
        self.rows += batch.index.tolist()
        if self.fatal is not None and len(self.rows) > self.fatal:
            raise KeyboardInterrupt
        return -batch.trees[view].counted_mask.sum(-1).float()

    def release(self):
        pass


def test_a_killed_precomputation_goes_on_where_it_stopped(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(precompute_module, "ROWS_PER_SHARD", 2)
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    killed = Counting(fatal=4)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        gather(tmp_path, module, ensemble_with_cache(tmp_path, killed))
    rest = Counting()
    table, datamodule = gather(tmp_path, module, ensemble_with_cache(tmp_path, rest))
    assert len(rest.rows) == 2
    assert sorted(set(killed.rows[:4]) | set(rest.rows)) == list(range(6))
    whole = datamodule.datasets["val"].batch(range(6))
    assert torch.equal(table[0], -whole.trees[PLAIN].counted_mask.sum(-1).float())
    # Nothing unfinished is left behind, and a third run scores nothing.
    assert not list((tmp_path / "tables").rglob("*.parts"))
    third = Counting()
    gather(tmp_path, module, ensemble_with_cache(tmp_path, third))
    assert third.rows == []


def test_an_adapter_that_can_not_join_a_split_policy_says_what_to_do(monkeypatch):
    monkeypatch.setattr("pl_prefopt.references.adapters.FSDPModule", SimpleNamespace)
    host = SimpleNamespace(policy=SimpleNamespace())
    with pytest.raises(ContractError, match="CHECKPOINT --out FOLDER --merge true --dtype float32"):
        NamedAdapter("adapter").prepare(host, {})


def test_views_are_precomputed_too(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), KTO(desirable_above=4.0))
    trainer = make_trainer(tmp_path, ensemble_with_cache(tmp_path, AdapterOff()))
    trainer.validate(module, make_datamodule(tmp_path), verbose=False)
    names = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "tables").rglob("*.safetensors"))
    assert names == ["val-mismatched", "val-plain"]


def test_a_table_travels(tiny_model, sibling_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    reference = FrozenModel(PolicySpec(name=str(sibling_model)))
    first, _ = gather(tmp_path, module, ensemble_with_cache(tmp_path, reference))
    (folder,) = (tmp_path / "tables").iterdir()
    moved = folder.rename(tmp_path / "moved")
    second, _ = gather(tmp_path, module, ReferenceEnsemble([PrecomputedTable(str(moved))]))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "change",
    [{"max_response_length": 5}, {"template": "plain"}, {"max_rows": 5}],
    ids=["length limit", "template", "rows"],
)
def test_a_table_of_other_data_is_refused(tiny_model, tmp_path, change):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    gather(tmp_path, module, ensemble_with_cache(tmp_path, Counting()))
    table = ReferenceEnsemble([PrecomputedTable(str(tmp_path / "tables" / "counting"))])
    with pytest.raises(DataError, match=r"holds only val-plain-.*precompute"):
        gather(tmp_path, module, table, **change)


def test_a_missing_table_is_one_sentence(tiny_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    with pytest.raises(ConfigError, match="is none"):
        gather(tmp_path, module, ReferenceEnsemble([PrecomputedTable(str(tmp_path / "nowhere"))]))


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 64]) + content[-2:]


DAMAGES = {
    "cut": lambda content: content[:20],
    "empty": lambda content: b"",
    "a flipped bit": flipped,
    "a flipped bit in the checksum's name": lambda content: content.replace(b"checksum", b"chucksum"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_made_anew_unless_it_was_named(tiny_model, tmp_path, damage):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    whole, _ = gather(tmp_path, module, ensemble_with_cache(tmp_path, Counting()))
    (file,) = (tmp_path / "tables").rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    named = ReferenceEnsemble([PrecomputedTable(str(file.parent))], precompute=True)
    with pytest.raises(DataError, match=r"val-plain-.* is damaged .*fetch it again or compute it anew"):
        gather(tmp_path, module, named)
    with pytest.warns(UserWarning, match="A cached table is computed anew: .* is damaged"):
        again, _ = gather(tmp_path, module, ensemble_with_cache(tmp_path, Counting()))
    assert torch.equal(again, whole)


def test_a_damaged_part_of_a_table_is_scored_again(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(precompute_module, "ROWS_PER_SHARD", 2)
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        gather(tmp_path, module, ensemble_with_cache(tmp_path, Counting(fatal=4)))
    part, _ = sorted((tmp_path / "tables").rglob("*.safetensors"))
    part.write_bytes(flipped(part.read_bytes()))
    rest = Counting()
    with pytest.warns(UserWarning, match="A cached table is computed anew"):
        gather(tmp_path, module, ensemble_with_cache(tmp_path, rest))
    assert len(rest.rows) == 4


def test_precompute_without_a_datamodule_says_what_it_needs(tiny_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    datamodule = make_datamodule(tmp_path, tokenizer=str(tiny_model))
    datamodule.prepare_data()
    datamodule.setup("validate")
    batches = DataLoader([datamodule.datasets["val"].batch([0, 1])], batch_size=None)
    trainer = make_trainer(tmp_path, ensemble_with_cache(tmp_path, AdapterOff()))
    with pytest.raises(ContractError, match="PreferenceDataModule"):
        trainer.validate(module, batches, verbose=False)


def test_members_are_in_no_checkpoint(tiny_model, sibling_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO())
    reference = FrozenModel(PolicySpec(name=str(sibling_model)))
    trainer = make_trainer(tmp_path, ReferenceEnsemble([reference]), limit_train_batches=1)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows()))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert all("lora_" in name for name in saved["state_dict"])
    assert reference.model is None


def test_an_offloaded_reference_gives_the_same_log_probs(tiny_model, other_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    spec = PolicySpec(name=str(other_model))
    members = [FrozenModel(spec), FrozenModel(spec, offload=True, device="cpu")]
    table, _ = gather(tmp_path, module, ReferenceEnsemble(members))
    assert torch.equal(table[0], table[1])


def test_an_offloaded_reference_leaves_its_device_after_an_error(tiny_model, monkeypatch):
    member = FrozenModel(lora_spec(tiny_model), offload=True, device="meta")
    member.model = torch.nn.Linear(1, 1)
    moved = []
    monkeypatch.setattr(member.model, "to", moved.append)
    with pytest.raises(RuntimeError, match="out of memory"), member.running(None):
        raise RuntimeError("out of memory")
    assert moved == [torch.device("meta"), torch.device("cpu")]


def test_a_reference_with_its_own_tokeniser_refuses_responses_cut_for_the_policy(
    tiny_model, other_model, sibling_model, tmp_path
):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    own = ReferenceEnsemble([FrozenModel(PolicySpec(name=str(other_model)))])
    with pytest.raises(ContractError, match=r"of the val responses are cut for the policy"):
        gather(tmp_path, module, own, max_response_length=5)
    # One that shares the policy's tokens sees what the policy sees.
    shared = ReferenceEnsemble([FrozenModel(PolicySpec(name=str(sibling_model)))])
    table, datamodule = gather(tmp_path, module, shared, max_response_length=5)
    expected = scored_by(build_frozen(PolicySpec(name=str(sibling_model))), datamodule)
    torch.testing.assert_close(table[0], expected, atol=2e-3, rtol=1e-5)


def save_other(folder, *, chat_template=CHATML, vocab_size=320, context=512):
    """A model with its own settings; with 400 tokens its tokeniser is the policy's."""
    tokenizer = tiny_tokenizer(chat_template=chat_template, vocab_size=vocab_size)
    model = tiny_llama(len(tokenizer))
    model.config.max_position_embeddings = context
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return FrozenModel(PolicySpec(name=str(folder)))


def longest(fields, *, vocab_size):
    """Tokens of a row's prompt and its longest response."""
    encoded = Renderer(tiny_tokenizer(vocab_size=vocab_size)).encode(to_row(fields))
    return len(encoded.prompt_ids) + max(map(len, encoded.response_ids))


def test_rows_too_long_for_a_reference_are_named_before_it_loads(tiny_model, tmp_path, monkeypatch):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    lengths = [longest(row, vocab_size=320) for row in scored_rows()]
    reference = save_other(tmp_path / "short", context=min(lengths))
    long = [number for number, length in enumerate(lengths, start=1) if length > min(lengths)]
    assert 0 < len(long) < 6
    monkeypatch.setattr(frozen_module, "build_frozen", lambda spec: pytest.fail("the model was loaded"))
    with pytest.raises(DataError) as refused:
        gather(tmp_path, module, ReferenceEnsemble([reference]))
    said = str(refused.value)
    assert f"short' takes at most {min(lengths)} tokens, but {len(long)} of the 6 val rows have" in said
    assert [f"rows.jsonl, row {number}" in said for number in range(1, 7)] == [n in long for n in range(1, 7)]


def test_only_what_one_row_has_must_fit(tiny_model, tmp_path):
    # The longest prompt and the longest response of a batch are of different rows.
    rows = [
        {"prompt": "Say yes. " * 6, "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Say", "chosen": "Yes, " * 12, "rejected": "No."},
    ]
    context = max(longest(row, vocab_size=400) for row in rows)
    assert context < longest({**rows[1], "prompt": rows[0]["prompt"]}, vocab_size=400)
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    for number, enough in enumerate((True, False)):
        folder = tmp_path / str(number)
        reference = save_other(folder, vocab_size=400, context=context - (not enough))
        ensemble = ReferenceEnsemble([reference])
        if enough:
            gather(tmp_path, module, ensemble, rows=rows)
            continue
        with pytest.raises(DataError, match=f"takes at most {context - 1} tokens, but a row has a prompt of"):
            gather(tmp_path, module, ensemble, rows=rows)


def test_a_row_that_a_references_template_refuses_is_named_with_the_reference(tiny_model, tmp_path):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    reference = save_other(tmp_path / "strict", chat_template=strict)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"prompt": turns, "chosen": "a", "rejected": "b"},
    ]
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    told = r"reference '.*strict' can't read .*rows\.jsonl, row 2: .*no system.*references\..*template: plain"
    with pytest.raises(DataError, match=told):
        gather(tmp_path, module, ReferenceEnsemble([reference]), rows=rows)


def test_a_four_bit_reference_is_near_its_full_precision(cpu_of_bitsandbytes, tmp_path, tiny_model):
    folder = tmp_path / "wide"
    tokenizer = tiny_tokenizer(vocab_size=320)
    # Blocks of 64 weights share a scale, and a matrix should have many of them.
    tiny_llama(len(tokenizer), seed=5, hidden=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = PolicySpec(name=str(folder))
    small = dataclasses.replace(spec, four_bit=FourBit(compute="float32"))
    members = [FrozenModel(spec), FrozenModel(small), FrozenModel(small, offload=True)]
    seen = []
    for member in members[1:]:
        member.release = lambda member=member: seen.append(quantised_layers(member.model))
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO())
    table, _ = gather(tmp_path, module, ReferenceEnsemble(members))
    assert seen == [14, 14]  # seven in each of two layers; embeddings and head stay as they are
    gap = (table[1] - table[0]).abs() / table[0].abs().clamp(min=1)
    assert 1e-4 < gap.max() < 0.15
    assert torch.equal(table[1], table[2])
    assert FrozenModel(small).fingerprint(small) != FrozenModel(spec).fingerprint(spec)


def quantised_layers(model):
    return sum(weight.dtype == torch.uint8 for weight in model.parameters())
