"""Requests of different tasks share every pass, and each gets what its seeds give whoever was beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from affinery.adapters.files import Adapter
from affinery.composed import ComposedModel
from affinery.diffusion.sampling import Draw, SamplerSettings, sample
from affinery.errors import ConfigInvalid, UnknownName
from affinery.serving.engine import TOLERANCE, Ask, Engine, QueueFull, Stopped, TooLate
from affinery.serving.fairness import Turns
from tests import tiny_models as tiny
from tests.shipped import told_model


@dataclass
class Held:
    """An engine whose passes wait until they are let go, and what was in each."""

    engine: Engine
    sizes: list[int]
    go: threading.Event


@pytest.fixture
def held() -> Iterator[Held]:
    yield from holding(tiny.composed(*tiny.two_tasks()))


def holding(model: ComposedModel) -> Iterator[Held]:
    """Every task at version 1."""
    sizes: list[int] = []
    go = threading.Event()
    engine = Engine(model, 4, 12, sizes.append, dict.fromkeys(model.slots, 1))
    engine.between_passes(lambda _: go.wait(60))
    yield Held(engine, sizes, go)
    go.set()
    engine.stop()


def ask(task: str = "digits", rows: tuple[int, ...] = (4,), first: int = 0, **given: Any) -> Ask:
    settings = SamplerSettings(given.pop("steps", 3), given.pop("guidance", 2.0))
    return Ask(task, rows, tuple(range(first, first + len(rows))), settings, **given)


def alone(model: ComposedModel, asked: Ask) -> torch.Tensor:
    told = (asked.prompt, asked.condition)
    draws = [Draw(asked.task, row, seed, *told) for row, seed in zip(asked.rows, asked.seeds, strict=True)]
    return sample(model, draws, asked.settings)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) <= TOLERANCE


def test_each_request_gets_what_its_seeds_give_alone_whoever_was_beside_it(held: Held) -> None:
    """Other tasks, other numbers of steps, other guidance, one without: all in the same passes."""
    asks = [
        ask(rows=(4, 5)),
        ask("letters", (6, 8, 7), 10, steps=5),
        ask("letters", (7,), 20, guidance=1.0),
        ask("digits", (5,), 30, steps=4, guidance=4.0),
    ]
    tickets = [held.engine.submit(one) for one in asks]
    held.go.set()
    wait([ticket.images for ticket in tickets], 60)
    for one, ticket in zip(asks, tickets, strict=True):
        found = ticket.images.result()
        assert float((found - alone(held.engine.model, one)).abs().max()) <= TOLERANCE
        assert ticket.done == ticket.total
    assert max(held.sizes) == 4
    assert sum(held.sizes) == sum(ticket.total for ticket in tickets)


def test_the_same_request_again_in_other_company_differs_by_rounding_only(held: Held) -> None:
    held.go.set()
    first = held.engine.submit(ask(rows=(4, 5))).images.result(60)
    tickets = [held.engine.submit(ask("letters", (6, 7, 8), 40)), held.engine.submit(ask(rows=(4, 5)))]
    again = tickets[1].images.result(60)
    assert float((first - again).abs().max()) <= TOLERANCE


def test_more_than_may_wait_is_refused_and_what_waits_is_drawn(held: Held) -> None:
    tickets = [held.engine.submit(ask(rows=(4,) * 6)) for _ in range(2)]
    with pytest.raises(QueueFull, match="12 images wait already"):
        held.engine.submit(ask())
    held.go.set()
    assert [len(ticket.images.result(60)) for ticket in tickets] == [6, 6]
    assert len(held.engine.submit(ask()).images.result(60)) == 1


def test_a_request_that_nobody_waits_for_takes_no_further_pass(held: Held) -> None:
    gone, stays = held.engine.submit(ask(rows=(4,) * 8, steps=50)), held.engine.submit(ask("letters", (6,)))
    held.engine.cancel(gone)
    held.go.set()
    stays.images.result(60)
    assert held.sizes == [1, 1, 1]
    with pytest.raises(CancelledError):
        gone.images.result()


def test_a_deadline_that_passed_is_told_and_frees_the_queue(held: Held) -> None:
    late = held.engine.submit(ask(rows=(4,) * 8, deadline_seconds=1e-6))
    held.go.set()
    with pytest.raises(TooLate, match="1e-06 s"):
        late.images.result(60)
    assert len(held.engine.submit(ask(deadline_seconds=60)).images.result(60)) == 1


def test_what_cannot_be_drawn_is_refused_at_once(held: Held) -> None:
    for asked, error in (
        (ask("numbers"), UnknownName),
        (ask(steps=2000), ConfigInvalid),
        (replace(ask(), seeds=(-1,)), ConfigInvalid),
    ):
        with pytest.raises(error):
            held.engine.submit(asked)
    assert held.engine.waiting == 0


def test_a_task_is_taken_in_between_two_passes_without_moving_a_bit_of_others(held: Held) -> None:
    held.go.set()
    before = held.engine.submit(ask()).images.result(60)
    new = tiny.adapter(tiny.meta("new", (20, 22)), 9)
    slow = held.engine.submit(ask("letters", (6,), steps=30))
    held.engine.between_passes(lambda model: model.load(new)).result(60)
    drawn = held.engine.submit(ask("new", (21,))).images.result(60)
    slow.images.result(60)  # from here on no pass of the engine is under way
    assert float((drawn - alone(held.engine.model, ask("new", (21,)))).abs().max()) <= TOLERANCE
    assert torch.equal(held.engine.submit(ask()).images.result(60), before)


def newer(number: int) -> Adapter:
    """A version of the digits."""
    return tiny.adapter(tiny.meta("digits", (4, 6)), 30 + number)


def test_a_newer_version_draws_what_is_asked_from_now_on_and_the_older_what_it_began(held: Held) -> None:
    engine = held.engine
    began, other = ask(rows=(4, 5)), ask("letters", (6,))
    wanted = [alone(engine.model, one) for one in (began, other)]
    tickets = [engine.submit(one) for one in (began, other)]
    taken = engine.between_passes(lambda _: engine.versions.take(newer(2), 2))  # before their first pass
    held.go.set()
    assert taken.result(60).ref == "digits@2"
    for ticket, image in zip(tickets, wanted, strict=True):
        assert near(ticket.images.result(60), image)
    found = engine.versions.find("digits")
    rows = tuple(engine.model.task(found.slot).row(label) for label in ("digits 0", "digits 1"))
    drawn = engine.submit(ask(found.slot, rows)).images.result(60)
    assert near(drawn, alone(tiny.composed(newer(2)), began))
    assert not near(drawn, wanted[0])
    assert engine.versions.find("digits@2") == found
    assert near(
        engine.submit(ask(engine.versions.find("digits@1").slot, (4, 5))).images.result(60), wanted[0]
    )


def test_the_version_before_the_last_but_one_goes_when_nothing_is_drawn_with_it_any_more(held: Held) -> None:
    engine = held.engine
    began = engine.submit(ask(rows=(4,)))
    wanted = alone(engine.model, began.ask)
    engine.between_passes(lambda _: engine.versions.take(newer(2), 2))
    taken = engine.between_passes(lambda _: engine.versions.take(newer(3), 3))
    busy = engine.between_passes(lambda _: engine.drop_idle())  # before its first pass
    held.go.set()
    assert taken.result(60).ref == "digits@3"
    assert busy.result(60) == []
    assert near(began.images.result(60), wanted)
    assert [version.ref for version in engine.tidy()] == ["digits@1"]
    assert [version.number for version in engine.versions.of("digits")] == [2, 3]
    with pytest.raises(UnknownName, match="version of 'digits' here named 'digits@1'"):
        engine.versions.find("digits@1")
    with pytest.raises(UnknownName, match="digits"):
        engine.submit(began.ask)
    assert engine.take(newer(4), 4).ref == "digits@4"
    with pytest.raises(ConfigInvalid, match=r"digits@4 is held already, and digits@4 is not newer"):
        engine.take(newer(4), 4)


def test_conditions_and_captions_share_passes_with_tasks_that_are_told_none() -> None:
    picture = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    asks = [
        ask("edges", (4,), condition=picture[0]),
        ask("digits", (5,), 1),
        ask("edges", (4,), 2, condition=picture[1], prompt="ab c"),
        ask("digits", (6,), 3, prompt="abc", guidance=1.0),
    ]
    for held in holding(told_model()):
        tickets = [held.engine.submit(one) for one in asks]
        held.go.set()
        drawn = [ticket.images.result(60) for ticket in tickets]
        wanted = [alone(held.engine.model, one) for one in asks]
        assert all(near(*pair) for pair in zip(drawn, wanted, strict=True))
        assert held.sizes == [4, 4, 4]
        assert not near(drawn[0], alone(held.engine.model, replace(asks[0], condition=picture[1])))
        assert not near(drawn[3], alone(held.engine.model, replace(asks[3], prompt="")))
        for asked, reason in (
            (ask("edges", (4,)), "was given no picture"),
            (ask("edges", (4,), condition=torch.zeros(3, 8, 8)), "it must be 1 × 8 × 8"),
            (ask("digits", (5,), condition=picture[0]), "'digits' is told none"),
        ):
            with pytest.raises(ConfigInvalid, match=reason):
                held.engine.submit(asked)


def test_a_caption_for_a_backbone_that_takes_none_is_refused(held: Held) -> None:
    with pytest.raises(ConfigInvalid, match="has no text encoder"):
        held.engine.submit(ask(prompt="a boot"))


def test_whoever_waits_when_the_engine_stops_is_told(held: Held) -> None:
    ticket = held.engine.submit(ask(steps=900))
    threading.Timer(0.2, held.go.set).start()
    held.engine.stop()
    with pytest.raises(Stopped):
        ticket.images.result(60)
    with pytest.raises(Stopped):
        held.engine.submit(ask())


@dataclass(eq=False)
class One:
    tenant: str
    size: int = 8


def by_size(one: One) -> object:
    return one.size


def test_a_tenant_with_one_image_does_not_wait_behind_a_tenant_with_a_hundred() -> None:
    turns, many, few = Turns(), [One("many") for _ in range(100)], One("few")
    same: Callable[[One], object] = by_size
    for _ in range(5):
        assert {one.tenant for one in turns.choose(many, 4, same)} == {"many"}
    for _ in range(3):  # it does not catch up on what it did not ask for, either
        chosen = turns.choose([*many, few], 4, same)
        assert [one.tenant for one in chosen].count("few") == 1
    both = [One("a") for _ in range(50)] + [One("b") for _ in range(50)]
    assert [one.tenant for one in Turns().choose(both, 10, same)].count("b") == 5


def test_images_of_one_size_are_computed_together_and_the_others_have_their_turn() -> None:
    turns = Turns()
    line = [One("a", 8), One("a", 16), One("a", 8), One("b", 16)]
    first = turns.choose(line, 4, by_size)
    assert [one.size for one in first] == [8, 8]
    assert {one.size for one in turns.choose([one for one in line if one not in first], 4, by_size)} == {16}
