"""Heads against their closed forms, planted truth, and data that they can't use; no language model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from pl_prefopt.errors import ConfigError, ContractError, DataError
from pl_prefopt.functional import log_likelihoods, skew_scores
from pl_prefopt.functional.embeddings import unit_norm
from pl_prefopt.heads import (
    AttributeHead,
    DirectionHead,
    EmbeddingHead,
    FeatureHead,
    GroupHead,
    Head,
    IdealPointHead,
    MixtureHead,
)
from pl_prefopt.modules.reward import _check_temperature
from pl_prefopt.objectives import GPM, Sum
from pl_prefopt.objectives.pair_rewards import MixtureScore
from pl_prefopt.rows import Message, PreferenceRow

SIZE = 6
NOTHING = torch.empty(0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(number=1, scores=(1.0, 0.0), **columns):
    prompt = (Message("user", "Hi"),)
    answers = tuple((Message("assistant", str(n)),) for n in range(len(scores)))
    return PreferenceRow(
        prompt=prompt, responses=answers, scores=scores, columns=columns, origin=f"a.jsonl, row {number}"
    )


def of_users(*users, repeats=2):
    return [pair(number, user=user) for number, user in enumerate(users * repeats, 1)]


def built(head: Head, rows=(), size=SIZE) -> Head:
    torch.manual_seed(0)
    head.learn(rows)
    head.check_rows("train", rows)
    head.build(size)
    return head


USERS = of_users("ann", "bob", "cy")
HEADS = {
    "embedding": lambda: built(EmbeddingHead(blocks=2)),
    "gated": lambda: built(EmbeddingHead(blocks=2, prompt_gate=True, unit_norm=False)),
    "mixture": lambda: built(MixtureHead(parts=3)),
    "ideal point": lambda: built(IdealPointHead(prototypes=2, dimensions=3), USERS),
    "ideal point, mixed": lambda: built(
        IdealPointHead(prototypes=2, dimensions=3, prototype_space="mixed", hidden_layers=1, squared=True),
        USERS,
    ),
    "direction": lambda: built(DirectionHead(prototypes=2, dimensions=3), USERS),
    "inner product": lambda: built(DirectionHead(prototypes=2, dimensions=3, angle=False), USERS),
    "groups": lambda: built(GroupHead(groups=2), USERS),
    "learned temperature": lambda: built(EmbeddingHead(blocks=2, learned_temperature=True)),
    "attributes": lambda: built(AttributeHead(attributes=["a", "b"])),
    "features": lambda: built(FeatureHead(features=["f"]), [pair(f=(1.0, 3.0))]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_its_outputs_reads_each_rows_own_states_and_can_be_made_again(name):
    head = HEADS[name]()
    last, prompt = drawn(4, SIZE), drawn(4, SIZE, seed=1)
    columns = {"user": head.encode("user", ["cy", "ann", "bob", "cy"])} if head.columns == ("user",) else {}
    columns |= {"f": torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)}
    outputs = head(last, prompt, columns)
    assert outputs.shape == (4, head.outputs)
    assert outputs.dtype == torch.float32
    one_by_one = [
        head(last[n : n + 1], prompt[n : n + 1], {key: v[n : n + 1] for key, v in columns.items()})
        for n in range(4)
    ]
    torch.testing.assert_close(torch.cat(one_by_one), outputs)

    again = type(head)(**head.settings())
    again.learned = head.learned
    again.build(SIZE)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(last, prompt, columns), outputs)
    assert again.reads_prompt or torch.equal(again(last, prompt[:, :0], columns), outputs)


def test_embeddings_have_unit_norm_and_gates_start_at_one():
    head, states = HEADS["embedding"](), drawn(4, SIZE)
    torch.testing.assert_close(head(states, NOTHING, {}).norm(dim=1), torch.ones(4))
    gated = HEADS["gated"]()
    plain = gated.embedding(states)
    torch.testing.assert_close(gated(states, drawn(4, SIZE, seed=1), {}), plain)
    with torch.no_grad():
        gated.gate.weight.copy_(drawn(2, SIZE, seed=2))
    prompts = drawn(4, SIZE, seed=1)
    weights = 2 * (prompts @ gated.gate.weight.T).softmax(dim=1)
    squares = (gated(states, prompts, {}) / plain).square()
    torch.testing.assert_close(squares, weights.repeat_interleave(2, dim=1))


def test_a_learned_temperature_divides_forms_and_starts_as_published():
    head, states = HEADS["learned temperature"](), drawn(4, SIZE)
    plain = unit_norm(head.embedding(states))
    found = skew_scores(head(states, NOTHING, {}))
    torch.testing.assert_close(found, skew_scores(plain) / 0.10020, rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(found[0, 1], head.raw_temperature)
    expected = -found[0, 1] / head.temperature * torch.sigmoid(head.raw_temperature)
    torch.testing.assert_close(slope, expected)
    with torch.no_grad():
        head.raw_temperature.fill_(-9.0)
    assert head.temperature.item() == pytest.approx(0.01)
    assert "learned_temperature" not in HEADS["embedding"]().settings(), "older checkpoints have no such key"


def test_a_router_reads_each_rows_own_prompt():
    head = HEADS["mixture"]()
    with torch.no_grad():
        head.router.weight.copy_(drawn(3, SIZE, seed=2))
    prompts = drawn(4, SIZE, seed=1)
    found = head(drawn(4, SIZE), prompts, {})[:, 3:]
    torch.testing.assert_close(found.exp(), (prompts @ head.router.weight.T).softmax(dim=1))


def train(head, margins, steps=100, rate=0.1):
    """Minimise −log σ of ``margins(head)``."""
    search = torch.optim.Adam(head.parameters(), lr=rate)
    for _ in range(steps):
        search.zero_grad()
        (-logsigmoid(margins(head)).mean()).backward()
        search.step()


def test_a_mixture_separates_planted_contexts():
    """The first half of the prompts prefers one direction, the second half its opposite."""
    taste, kinds = drawn(SIZE, seed=3), torch.tensor([1.0, -1.0]).repeat_interleave(100)
    prompts = torch.cat([kinds.unsqueeze(1), drawn(200, SIZE - 1, seed=4)], dim=1)
    sides = drawn(200, 2, SIZE, seed=5)
    order = (kinds * ((sides[:, 0] - sides[:, 1]) @ taste) > 0).long()
    chosen, rejected = sides[torch.arange(200), 1 - order], sides[torch.arange(200), order]
    head = built(MixtureHead(parts=2))

    def margins(head):
        outputs = torch.stack([head(chosen, prompts, {}), head(rejected, prompts, {})], dim=1)
        return MixtureScore().margins(outputs)[:, 0, 1]

    train(head, margins)
    assert (margins(head) > 0).float().mean() > 0.97
    shares = head(chosen, prompts, {})[:, 2:].exp().detach()
    first, second = shares[:100].mean(0), shares[100:].mean(0)
    assert (first - second).abs().min() > 0.8


def planted_users():
    """Twelve users at two ideal points of a plane, 40 pairs each; the two last have to be fitted later."""
    points = torch.tensor([[1.5, 0.0], [-1.5, 0.5]])[torch.arange(12) % 2]
    sides = drawn(12, 40, 2, SIZE, seed=7)
    far = (sides[..., :2] - points[:, None, None]).norm(dim=-1)
    order = (far[..., 0] < far[..., 1]).long()
    index = order[..., None, None].expand(-1, -1, 1, SIZE)
    return sides.gather(2, 1 - index).squeeze(2), sides.gather(2, index).squeeze(2)


def test_ideal_points_are_recovered_and_new_users_fitted_from_few_pairs():
    chosen, rejected = planted_users()
    head = built(IdealPointHead(prototypes=2, dimensions=2), of_users(*range(10)))
    users = {"user": torch.arange(10).repeat_interleave(40)}
    own = chosen[:10].flatten(0, 1), rejected[:10].flatten(0, 1)

    def margins(head):
        return (head(own[0], NOTHING, users) - head(own[1], NOTHING, users)).squeeze(1)

    train(head, margins)
    assert (margins(head) > 0).float().mean() > 0.97
    points = head.ideal_points(head.user_logits.softmax(dim=1)).detach()
    apart, within = (points[0] - points[1]).norm(), (points[0::2] - points[0]).norm(dim=1).max()
    assert within < apart / 4, "users of one kind share an ideal point"

    before = {name: value.clone() for name, value in head.named_parameters() if name != "user_logits"}
    for user in (10, 11):
        head.fit_user(user, chosen[user, :5], rejected[user, :5])
        new = {"user": torch.full((35,), user)}
        found = head(chosen[user, 5:], NOTHING, new) - head(rejected[user, 5:], NOTHING, new)
        assert (found > 0).float().mean() > 0.9, "pairs that weren't used for the fit"
    assert all(torch.equal(dict(head.named_parameters())[name], value) for name, value in before.items())
    assert head.learned == {"users": list(range(12))}


def test_distances_don_t_change_with_a_shared_shift_or_rotation():
    head = HEADS["ideal point"]().double()
    states, weights = drawn(5, SIZE).double(), drawn(5, 2, seed=1).double().softmax(dim=1)
    reward = head.rewards(states, NOTHING, weights)
    features = head.project(states)
    margin = (reward[0] - reward[1]).abs()
    assert (
        head.rewards(states, NOTHING, weights[:1].expand(5, 2))[:2].diff().abs()
        <= (features[0] - features[1]).norm()
    )
    rotation = torch.linalg.qr(drawn(3, 3, seed=2).double()).Q
    with torch.no_grad():
        head.project[0].weight.copy_(rotation @ head.project[0].weight)
        head.points.copy_(head.points @ rotation.T)
    torch.testing.assert_close(head.rewards(states, NOTHING, weights), reward)
    assert margin.isfinite()


def test_preferred_items_are_pulled_towards_the_user():
    """The published ``dist_logistic`` pushes them away."""
    head = HEADS["ideal point"]()
    state = drawn(1, SIZE).requires_grad_()
    user = {"user": torch.tensor([0])}
    loss = -logsigmoid(head(state, NOTHING, user) - head(drawn(1, SIZE, seed=1), NOTHING, user)).sum()
    (slope,) = torch.autograd.grad(loss, state)
    assert head(state - 0.01 * slope, NOTHING, user) > head(state, NOTHING, user)


def test_groups_start_in_turn_mix_by_user_and_move_to_what_explains_them():
    head = built(GroupHead(groups=2), of_users(5, 7, 9, 11))
    states = drawn(2, SIZE)
    columns = {"user": torch.tensor([7.0, 7.0])}
    outputs = head(states, NOTHING, columns)
    margin = MixtureScore().margins(outputs.unsqueeze(0))[0, 0, 1]
    torch.testing.assert_close(margin, outputs[0, 1] - outputs[1, 1])  # of group 1
    margins = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [0.5, -1.0]])
    likelihoods = log_likelihoods(margins, torch.arange(4), 4)
    assert head.assign(likelihoods, torch.ones(4, dtype=torch.long)) == 1
    assert head.assigned.tolist() == [0, 0, 0, 1], "the user that fits worst seeds the empty group"
    assert "assigned" in head.state_dict()


def test_features_are_standardised_and_their_number_counts():
    rows = [pair(f=(1.0, 3.0), g=(0, 8)), pair(f=(5.0, 7.0), g=(4, 4))]
    head = built(FeatureHead(features=["f", "g"]), rows)
    with torch.no_grad():
        head.weights.weight.copy_(torch.tensor([[1.0, 2.0]]))
    columns = {"f": torch.tensor([4.0, 4.0 + 5**0.5]), "g": torch.tensor([4.0, 4.0 + 8**0.5])}
    torch.testing.assert_close(head(drawn(2, 1), NOTHING, columns), torch.tensor([[0.0], [3.0]]))


def test_users_that_are_not_known_have_no_reward():
    for users, values in (((3, 5), torch.tensor([5.0, 4.0, torch.nan])), (("a", "b"), None)):
        head = built(IdealPointHead(prototypes=2, dimensions=2), of_users(*users))
        values = head.encode("user", ["b", "c", None]) if values is None else values
        found = head(drawn(3, SIZE), NOTHING, {"user": values})
        assert found.isnan().flatten().tolist() == [False, True, True]


def learn(head, rows):
    head.learn(rows)


def check(head, rows):
    head.learn(of_users("ann", "bob"))
    head.check_rows("predict", rows)


@pytest.mark.parametrize(
    ("head", "act", "rows", "message"),
    [
        (
            GroupHead(groups=3),
            learn,
            of_users("ann", "bob"),
            "3 groups, but the train rows have only 2 users",
        ),
        (
            IdealPointHead(prototypes=3, dimensions=2),
            learn,
            of_users("ann", "bob"),
            "set `prototypes` to 2 or less",
        ),
        (
            GroupHead(groups=1),
            learn,
            [*of_users("ann"), pair(3, user="bob")],
            "at least 2 pairs per user in the train rows, got 1 of the user 'bob'",
        ),
        (
            GroupHead(groups=1),
            learn,
            [*of_users("ann"), pair(3, user="bob", scores=(1.0, 1.0))],
            "got 0 of the user 'bob'",
        ),
        (
            GroupHead(groups=1),
            learn,
            [pair(3)],
            "a text or a whole number, in the column 'user', got none in a",
        ),
        (GroupHead(groups=1), learn, [pair(3, user=1.5)], "got 1.5 in a.jsonl, row 3 .train."),
        (GroupHead(groups=1), learn, of_users("ann", 3), "got texts and numbers"),
        (
            GroupHead(groups=1),
            check,
            [pair(9, user="eve")],
            "got 'eve' in a.jsonl, row 9 .predict.: add the user",
        ),
        (
            FeatureHead(features=["f"]),
            learn,
            [pair(f=(1.0,))],
            "per response, 2, .*'f', got 1 values",
        ),
        (FeatureHead(features=["f"]), learn, [pair(f=1.0)], "per response, 2, .*'f', got 1.0 in"),
        (FeatureHead(features=["f"]), learn, [pair()], "one number per response, 2, .*'f', got None in"),
        (FeatureHead(features=["f"]), learn, [pair(f=(1.0, float("nan")))], "finite numbers .*, got nan in"),
        (FeatureHead(features=["f"]), learn, [pair(f=(1.0, "x"))], "finite numbers .*, got 'x' in"),
    ],
)
def test_rows_that_a_head_cannot_use_are_refused_in_one_sentence(head, act, rows, message):
    with pytest.raises((DataError, ContractError), match=message):
        act(head, rows)


def test_new_users_need_pairs_and_a_new_name():
    head = HEADS["ideal point"]()
    with pytest.raises(DataError, match="at least 2 pairs of the new user 'dan', got 1"):
        head.fit_user("dan", drawn(1, SIZE), drawn(1, SIZE))
    with pytest.raises(DataError, match="'ann' is known already"):
        head.fit_user("ann", drawn(2, SIZE), drawn(2, SIZE))
    with pytest.raises(DataError, match="a user like the others, such as 'ann', got 4"):
        head.fit_user(4, drawn(2, SIZE), drawn(2, SIZE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingHead(blocks=0), "blocks must be at least 1, but is 0"),
        (lambda: MixtureHead(parts=0), "parts must be at least 1"),
        (lambda: FeatureHead(features=["f", "f"]), "features must name at least one column, each once"),
        (lambda: AttributeHead(attributes=[]), "attributes must name at least one"),
        (lambda: IdealPointHead(prototypes=1, dimensions=1, prototype_space="x"), "must be one of projected"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("objective", [GPM(), Sum(parts={"gpm": GPM(temperature=0.5)})])
def test_two_temperatures_are_refused(objective):
    head = EmbeddingHead(learned_temperature=True)
    with pytest.raises(ConfigError, match=r"divides by its own, 0\..*: set the objective's temperature to 1"):
        _check_temperature(head, objective)
    _check_temperature(head, GPM(temperature=1.0))
    _check_temperature(EmbeddingHead(), objective)
