"""The law by which a limit is learned (E11), in worlds whose optimum is known: no threads, fixed seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from worlds import Computing, Locked, Place, Resource, Servers, Shared, about, exactly, mixed, slowing

from cmwq._workqueue.learned import Law, Stage
from cmwq._workqueue.rising import FIRST, Sight

SEEDS = range(1, 4)
NONE = 256
World = Callable[[], Resource]


def law(known: int | None = None) -> Law:
    return Law(NONE, 4, known)


def shares(world: World, works: int, limit: int, seeds: range = SEEDS) -> list[float]:
    """For each seed: the time that all works take under that limit, as a share of that which they take with "auto"."""
    return [
        Place(world(), limit, seed=seed).run(works).seconds / Place(world(), law(), seed=seed).run(works).seconds
        for seed in seeds
    ]


@pytest.mark.parametrize(
    ("world", "works", "best"),
    [
        pytest.param(lambda: Locked(0.00035, 0.0005, 0.004), 800, 2, id="one file with one lock, as SQLite's"),
        pytest.param(lambda: Servers(20, exactly(0.05)), 2000, 24, id="20 servers, works of equal length"),
        pytest.param(lambda: Servers(8, about(0.01)), 1600, 11, id="8 connections"),
        pytest.param(lambda: Shared(slowing(8, 0.005)), 800, 8, id="slows down beyond 8"),
        pytest.param(lambda: Shared(slowing(20, 0.02)), 2000, 20, id="slows down beyond 20"),
    ],
)
def test_E11_a_learned_limit_gets_nine_tenths_done_of_what_the_best_number_gets(
    world: World, works: int, best: int
) -> None:
    found = shares(world, works, best)
    assert statistics.median(found) > 0.9, found
    assert min(found) > 0.75, found


@pytest.mark.parametrize(
    ("world", "works"),
    [
        pytest.param(lambda: Resource(exactly(0.05)), 400, id="400 sleeps"),
        pytest.param(lambda: Resource(exactly(0.005)), 3000, id="short sleeps"),
        pytest.param(lambda: Resource(about(0.02)), 3000, id="sleeps of many lengths"),
        pytest.param(lambda: Resource(mixed(0.9, 0.005, 0.2)), 3000, id="some long ones"),
        pytest.param(lambda: Resource(mixed(0.5, 0.005, 0.2)), 6000, id="short and long"),
        pytest.param(lambda: Resource(mixed(0.1, 0.005, 0.2)), 3000, id="some short ones"),
        pytest.param(lambda: Computing(exactly(0.005)), 400, id="computing"),
        pytest.param(lambda: Computing(exactly(0.00001)), 5000, id="next to nothing"),
    ],
)
def test_E11_where_there_is_no_limit_none_is_learned(world: World, works: int) -> None:
    found = shares(world, works, NONE)
    assert statistics.median(found) > 0.95, found
    assert min(found) > 0.8, found


def test_E11_the_capacity_falls_and_rises_and_the_limit_follows_within_seconds() -> None:
    for seed in SEEDS:
        servers = Servers(40, about(0.02, 0.3))
        place = Place(servers, law(), seed=seed)

        def give_back(servers: Servers = servers, place: Place = place) -> None:
            servers.places = 40
            servers.serve(place.now, place.chance)

        run = place.run(10**6, [(6, lambda s=servers: setattr(s, "places", 5)), (12, give_back)], until=20)
        assert run.rate(4, 6) > 0.9 * 40 / 0.021
        assert run.rate(8, 12) > 0.8 * 5 / 0.021
        assert run.rate(17, 20) > 0.9 * 40 / 0.021, f"seed {seed}"


def test_E11_a_service_that_begins_to_slow_down_is_spared_within_seconds() -> None:
    for seed in SEEDS:
        service = Shared(slowing(30, 0.02))
        place = Place(service, law(), seed=seed)

        def worsen(service: Shared = service, place: Place = place) -> None:
            service.advance(place.now)
            service.speed = slowing(6, 0.02)

        run = place.run(10**6, [(6, worsen)], until=20)
        assert run.rate(4, 6) > 0.75 * 750
        assert run.rate(16, 20) > 0.8 * 150, f"seed {seed}"


def test_E11_it_neither_drifts_nor_oscillates() -> None:
    """Over the last 16 of 20 seconds: what gets done is what can be, and the limit stays within a factor of two for
    most of the time.
    """
    for seed in (1, 2):
        run = Place(Servers(20, about(0.01, 0.3)), law(), seed=seed).run(10**6, until=20)
        assert run.rate(4, 20) > 0.93 * 20 / 0.0105
        seen = sorted(run.limit_at(4 + n / 100) for n in range(1600))
        assert seen[1520] <= 4 * seen[80], f"seed {seed}"


def test_E11_without_a_limit_it_does_not_drift_either() -> None:
    run = Place(Resource(exactly(0.05)), law(), seed=1).run(10**6, until=15)
    assert run.rate(1, 15) > 0.99 * NONE / 0.05
    run = Place(Resource(mixed(0.5, 0.005, 0.2)), law(), seed=1).run(10**6, until=20)
    assert run.rate(2, 20) > 0.95 * NONE / 0.1025


def test_E11_when_everything_fails_at_once_the_limit_stays_and_nothing_is_learned_from_it() -> None:
    """A thousand failures in a moment look like a rate that was never seen before."""
    for seed in SEEDS:
        place = Place(
            Servers(20, about(0.01, 0.3)), law(), seed=seed, fails=lambda now, chance: 4 < now < 6
        )  # fmt: skip
        run = place.run(10**7, until=9)
        before, after = run.rate(3, 4), run.rate(6.2, 7)
        assert run.limit_at(5) == run.limit_at(5.9)
        assert run.limit_at(5.9) >= run.limit_at(3.9) / 2
        assert after > 0.85 * before, f"seed {seed}"


def test_E11_a_limit_does_not_rise_on_failures() -> None:
    place = Place(Resource(about(0.02, 0.3)), law(), seed=1, fails=lambda now, chance: now < 1)
    run = place.run(10**6, until=2)
    assert run.limit_at(0.99) <= FIRST + 1
    assert run.rate(1.5, 2) > 0.9 * NONE / 0.021


def test_E11_failures_among_successes_are_no_achievement() -> None:
    """Beyond 8 places the service refuses at once, which is fast. What it does is what counts."""

    class Refusing(Servers):
        pass

    service = Refusing(8, about(0.01, 0.2))
    place = Place(service, law(), seed=1)
    place.fails = lambda now, chance: len(place.executing) > 12
    run = place.run(10**6, until=5)
    assert run.rate(1, 5) > 0.85 * 8 / 0.0102
    assert run.limit_at(5) <= 32


def test_E11_works_that_arrive_one_by_one_wait_no_longer_than_without_a_limit() -> None:
    arrivals = [(n * 0.001, 1) for n in range(4000)]
    for limit in (NONE, law()):
        run = Place(Servers(16, about(0.01, 0.3)), limit, seed=1).run(list(arrivals))
        assert run.seconds < 4.1


def test_E11_one_work_that_never_ends_does_not_keep_the_others_from_being_judged() -> None:
    class OneHangs(Shared):
        def begin(self, work: int, now: float, chance: object) -> None:
            if work:  # the first one takes a place, and nothing else
                super().begin(work, now, chance)  # type: ignore[arg-type]

    best = Place(Shared(slowing(8, 0.005)), 8, seed=1).run(10**6, until=4).rate(1, 4)
    assert Place(OneHangs(slowing(8, 0.005)), law(), seed=1).run(10**6, until=4).rate(1, 4) > 0.85 * best


def test_E11_what_was_learned_is_kept_over_idle_times() -> None:
    """Bursts, with seconds in between: only the first one pays for learning."""
    arrivals = [(n * 5.0, 400) for n in range(6)]
    run = Place(Locked(0.00035, 0.0005, 0.004), law(), seed=1).run(arrivals)
    ends = [max(at for at in run.ends if at < 5 * (n + 1)) - 5 * n for n in range(6)]
    assert max(ends[1:]) < 1.25 * min(ends)
    assert run.limit_at(25) <= 8


def test_E11_a_known_limit_is_where_it_begins() -> None:
    known = law(20)
    assert (known.limit, known.stage) == (20, Stage.STAY)
    assert law().limit == FIRST
    assert law(10**6).limit == NONE


def test_E11_a_law_is_the_same_until_its_copy_takes_its_place() -> None:
    """An interruption finds the old one or the new one, whole."""
    old = law()
    old.begin(0.0, 4)
    before = {name: getattr(old, name) for name in Law.__slots__ if name != "_rise"}
    rise = {name: getattr(old._rise, name) for name in type(old._rise).__slots__}
    new = old.copy()
    for n in range(1, 200):
        new.see(Sight(n * 1e-3, 4, n % 2, 4, 4))
    assert before == {name: getattr(old, name) for name in before}
    assert rise == {name: getattr(old._rise, name) for name in rise}
    assert new.stage is not old.stage


def test_E11_windows_in_which_nothing_waited_are_void() -> None:
    one = law(20)
    for n in range(100):
        one.begin(n * 1.0, 20)
        one.see(Sight(n + 0.01, 5, 0, 20, 20))
        one.stop()
        assert not one.watches
        one.see(Sight(n + 0.5, 500, 0, 20, 20))
    assert (one.limit, one.stage, one._base) == (20, Stage.STAY, None)
