"""The law by which a limit is learned (E11): `max_active="auto"`. It has no thread, no clock and no lock.

The question is how many works of a queue should be active at a time. The judge is what gets done: how many works ended
well in a time, while others waited for a place. How long works take is no judge, because it can't tell a service that
is full from works that are long; it is only a hint when to look.

A `Law` is told what was seen (`Sight`), and says the limit and when it wants to see again. It is in one of three
stages:

    RISE ── enough ended to judge by ──> STAY or TRY           nothing is known yet: see `rising`
    STAY ── it is time to look for something better ──> TRY    a window after a window at the same limit
    TRY  ── a verdict ──> STAY or TRY                          windows at another limit, compared with those before

STAY. A window ends when as many works ended well as may be active, so that each place was used once on average.

TRY. Another limit is kept if it pays: a lower one if more gets done or, beyond `enough` places, no less; a higher one
if at least 0.3 of the places added are used. Else the limit goes back to where it was.

Guarantees
- It does not oscillate. A higher limit has to get at least 0.15 more done, and a lower one may lose 0.04 at most, so
  but for noise no two limits are each preferred to the other. The noise is measured (`_noise`): the larger it is, the
  longer the windows and the clearer the verdict has to be. After vain tries the rests become longer.
- It does not drift. Whoever goes down step by step, with a small loss each time, is compared with the best rate of the
  whole descent (`_best`); and a step upwards that can't be told from noise is not taken.
- Trying costs little: works that a vain try lost are owed (`_owed`), and the next try of that kind is not made until
  `SPENT` of what was done since has paid for them, or, below the ceiling, for `REST` seconds. Where there is no limit
  none is looked for until the works are known well (`UNLIMITED`).
- It follows. A rate that is no more what it was makes it try at once, even before the window is over if next to nothing
  gets done; and below the ceiling no rest is longer than `REST` or four windows.
- Failures prove nothing. Only works that ended well count; a window in which next to none did is void, and the limit
  stays. So a service that is down for a while finds the limit as it was, however fast its callers fail.
- Windows in which no work waited are void, too, because then the limit was not what limited.
"""

from __future__ import annotations

from copy import copy
from enum import Enum
from math import exp, log, sqrt

from cmwq._workqueue.rising import FIRST, UNHINDERED, Rise, Sight

NEVER = 1 << 29
LEAST = 12
"""Works that have to end well in a window, at least."""
SHORTEST = 2e-3
"""Seconds a window lasts at least."""
LULL = 8e-3
"""Seconds between two looks at least, while nothing is tried."""
SPANS = 2
"""A window lasts at least so many times what a work takes alone: works that begin together end together."""
HOPELESS = 0.7
"""The logarithm of how many times less gets done if a try is ended at once."""
LATE = 0.3
"""If less than this share of what was done before is done, a window that is not complete says so, too."""
NOISE = 0.04
"""The variance of the logarithm of a window's rate, until it is known."""
NOISY = 0.1
"""If the noise is so many times this, windows are that much longer."""
UNLIMITED = 30
"""Windows to wait, where there is no limit, until a lower one is tried: that costs half a window or so."""
SPENT = 0.02
"""The share of the works done that tries may cost."""
REST = 1.0
"""Seconds: no rest between two tries is longer, unless windows are long."""
CHANGE = 0.4
"""The logarithm of a rate's change that is taken for a change of the world."""
CROWDED = 1.6
"""Works that take this much longer than they could are a hint that fewer would do."""


class Stage(Enum):
    RISE = "the limit rises while nothing ends"
    STAY = "it is kept, and what gets done is measured"
    TRY = "another limit is tried"


RISE, STAY, TRY = Stage.RISE, Stage.STAY, Stage.TRY


class Law:
    """What one place has learned, and what it does about it. `copy` it before a change that may be interrupted."""

    __slots__ = (
        "_all", "_alone", "_at", "_bad", "_base", "_best", "_down", "_executing", "_from", "_good", "_looks", "_noise",
        "_odd", "_owed", "_patience", "_rates", "_rise", "_settles", "_since", "_streak", "_to_end", "_tried", "_vain",
        "_windows", "ceiling", "enough", "limit", "quota", "stage", "wake",
    )  # fmt: skip

    def __init__(self, ceiling: int, enough: int, known: int | None = None) -> None:
        """ceiling: what counts as no limit. enough: below this a limit must gain something, not only lose nothing.
        known: a limit learned before.
        """
        self.ceiling = ceiling  # I
        self.enough = enough  # I
        self.limit = min(FIRST if known is None else known, ceiling)  # L
        self.stage = RISE if known is None else STAY  # L
        self.quota = NEVER  # L: so many works end until it wants to see again
        self.wake: float | None = None  # L: in so many seconds it wants to see again, if fewer end; None: never
        self._since: float | None = None  # L: when the window began; None: no work waits
        self._at = 0.0  # L: when it saw last
        self._good = self._bad = 0  # L: works that ended well, and others, in the window
        self._executing = self._looks = 0  # L: how many executed, all looks together, and how many looks those are
        self._settles = False  # L: the window has not begun: more are active than the limit allows, or fewer
        self._to_end = 0  # L: so many works have to end before it begins
        self._rise = Rise()  # L: RISE
        self._alone: float | None = None  # L: seconds a work takes if nothing is in its way, as far as is known
        self._base: float | None = None  # L: what gets done at this limit, in works per second
        self._best = 0.0  # L: the highest base since the limit went up last
        self._noise = NOISE  # L: the variance of the logarithm of a window's rate
        self._windows = 0  # L: windows since the last try
        self._odd = 0  # L: windows in a row in which the rate was another
        self._patience = 1  # L: windows until the next try
        self._vain = 0  # L: tries in a row that were in vain
        self._streak = False  # L: the last try was not
        self._owed = (0.0, 0.0)  # L: works that vain tries cost: those of a higher limit, and of a lower one
        self._tried = 0.0  # L: when a try began or ended last
        self._down = False  # L: TRY: where the limit went; else: where it is to go next
        self._from = self.limit  # L: TRY: the limit before
        self._rates: tuple[float, ...] = ()  # L: TRY: what got done in each window
        self._all = 0  # L: TRY: works that ended well since it began

    @property
    def watches(self) -> bool:
        """Whether works wait for a place."""
        return self._since is not None

    def usual(self) -> float:
        """Seconds that works usually take, as far as is known."""
        return self.limit / self._base if self._base else 0.0

    def copy(self) -> Law:
        new = copy(self)
        new._rise = copy(self._rise)
        return new

    # ------------------------------------------------------------------------------- what is seen

    def begin(self, now: float, active: int) -> None:
        """Works wait for a place from now on."""
        if self.stage is RISE:
            self._rise = Rise(now)
        self._new_window(now, active)

    def stop(self) -> None:
        """No work waits any more: what was seen of the window is void, and a try can't be judged."""
        self._since = None
        self.wake = None
        self.quota = NEVER
        if self.stage is TRY:
            self.limit, self.stage, self._windows = self._from, STAY, 0

    def see(self, sight: Sight) -> None:
        """Take note of what was seen since the last look, and decide."""
        if self._since is None:
            return
        good = max(0, sight.ended - sight.failed)
        before, self._at = self._at, sight.now
        self._all += good
        if self._booms(sight.now):
            # How much more it is in the long run is not known: suppose that each place does what those before did.
            assert self._base
            self._accept(sight, self._base * self.limit / self._from)
            return
        if self._settles:
            self._settle(sight, good)
            return
        self._good += good
        self._bad += sight.ended - good
        self._executing += sight.executing
        self._looks += 1
        if self.stage is RISE:
            self._go_up(sight, good, sight.now - before)
        elif self._is_void():
            self._give_up(sight)
        elif self.stage is TRY and self._is_hopeless(sight.now):
            self._reject(sight, self._rate(sight.now))
        elif not (self._is_complete(sight.now) or (self.stage is STAY and self._is_late(sight.now))):
            self._look_again()
        elif self.stage is TRY:
            self._judge(sight)
        else:
            self._measure(sight)

    # ------------------------------------------------------------------------------- windows

    def _needed(self) -> int:
        needed = max(self.limit, LEAST)
        return needed if self.limit < self._from >= self.ceiling else needed * (1 + min(3, int(self._noise / NOISY)))

    def _new_window(self, now: float, active: int) -> None:
        self._good = self._bad = self._executing = self._looks = 0
        self._settles = active > self.limit and self.stage is not RISE
        self._to_end = 0
        self._at = self._since = now
        self._look_again(active)

    def _look_again(self, active: int = 0) -> None:
        """Choose when to look next: a few times in a window, and at its end."""
        needed, self.wake = self._needed(), None
        left = max(1, needed - self._good)
        if self.stage is RISE:
            self.quota = 1 if self._rise.first is None else max(1, self.limit // 16)
            self.wake = self._rise.period(self._at) if self.limit < self.ceiling else None
        elif self._settles:
            self.quota = max(1, active - self.limit, self._to_end // 4)
        elif self.stage is TRY:
            self.quota = max(1, min(left, needed // 4), self._good // 4)
        else:
            # The window may have to last longer; and next to nothing may be spent on looking.
            self.quota = max(left, self._good // 2, int(LULL * (self._base or 0.0)))
        if self.stage is not RISE and self._base:
            self.wake = max(2 * SHORTEST, (2 if self.stage is TRY else 1 / LATE) * needed / self._base)

    def _is_complete(self, now: float) -> bool:
        assert self._since is not None
        return self._good >= self._needed() and now - self._since >= max(SHORTEST, SPANS * (self._alone or 0.0))

    def _rate(self, now: float) -> float:
        assert self._since is not None
        return self._good / max(now - self._since, 1e-6)

    def _is_void(self) -> bool:
        return self._bad > 4 * max(self._good, self._needed())

    def _matters(self) -> bool:
        """Do works execute in most places? Else the CPUs are what limits, and the pool sees to that."""
        return self._mean_executing() > 0.7 * self.limit

    def _mean_executing(self) -> float:
        return self._executing / max(1, self._looks)

    # ------------------------------------------------------------------------------- RISE

    def _go_up(self, sight: Sight, good: int, elapsed: float) -> None:
        """Let the limit rise, until enough works have ended; that is fewer if they are in one another's way."""
        rise = self._rise
        if rise.first is None and good:
            self._since, self._good = sight.now, 0  # what gets done is counted from here on
        rise.see(sight, good, elapsed)
        share = rise.share()
        needed = self._needed()
        if share < 0.5 and not sight.sleepers:
            needed = max(LEAST, self.limit // 4)
        elif share > UNHINDERED and self.limit < self.ceiling:
            needed *= 4  # it goes on rising
        if self._good >= needed:
            self._end_rise(sight, share)
        else:
            self.limit = min(self.ceiling, rise.limit(sight, self.limit))
            self._look_again()

    def _end_rise(self, sight: Sight, share: float) -> None:
        self.stage = STAY
        self._alone = self._rise.alone
        self._base = self._best = self._rate(sight.now)
        if self.limit >= self.ceiling:
            self._down, self._patience = True, UNLIMITED
            self._windows = -3  # where short works and long ones began together, all short ones end first
            self._new_window(sight.now, sight.active)
        elif (share > 0.5 or sight.sleepers) and self._matters():
            self._try(sight, self._more(2))
        else:  # the first works may have been slow for other reasons: a connection, a cache
            self._patience = 1 if share > 0.3 else 2
            self._new_window(sight.now, sight.active)

    def _more(self, ratio: float) -> int:
        return min(self.ceiling, round(self.limit * ratio + 0.5))

    # ------------------------------------------------------------------------------- STAY

    def _measure(self, sight: Sight) -> None:
        """A window at the same limit is over."""
        rate = self._rate(sight.now)
        more, less = self._owed
        self._owed = max(0.0, more - SPENT * self._good), max(0.0, less - SPENT * self._good)
        off = log(rate / self._base) if self._base and self._windows > 0 else 0.0
        odd = abs(off) > max(CHANGE, 3 * sqrt(self._noise))
        if self._windows > 0:
            self._noise += 0.2 * (min(off * off, 1.0) - self._noise)
        self._odd = (max(0, self._odd) + 1 if off > 0 else min(0, self._odd) - 1) if odd else 0
        if abs(self._odd) >= 2 or (odd and self._is_late(sight.now)):
            self._begin_anew(down=off < 0)
        if not self._base or self._windows <= 0:
            self._base = rate
        elif not self._odd or self._windows < 3:
            # In time, not in rate: of two windows the longer one says more.
            weight = max(0.3, 1 / (self._windows + 1))
            self._base = 1 / ((1 - weight) / self._base + weight / rate)
        self._windows += 1
        self._best = max(self._best, self._base)
        alone = self._mean_executing() / rate
        crowded = self._alone is None or alone > CROWDED * self._alone
        self._alone = alone if self._alone is None else min(alone, self._alone)
        limit = self._next(sight.now, crowded=crowded)
        if limit is None:
            self._new_window(sight.now, sight.active)
        else:
            self._try(sight, limit)

    def _is_late(self, now: float) -> bool:
        """So little gets done, compared with before, that the window need not be waited for."""
        if self._since is None or not self._base or self._windows <= 0 or self._good < max(LEAST // 4, self._bad):
            return False
        due = self._base * (now - self._since)
        return due >= self._needed() and self._good < LATE * due

    def _begin_anew(self, *, down: bool) -> None:
        """The world has changed: what is known of it is void."""
        self._windows = self._odd = self._vain = 0
        self._owed, self._best, self._noise, self._down = (0.0, 0.0), 0.0, NOISE, down
        self._patience = 1 if self.limit < self.ceiling else UNLIMITED // 4

    def _next(self, now: float, *, crowded: bool) -> int | None:
        """The limit to be tried now. None: it is not time for that, or nothing is to be gained."""
        rested = self.limit < self.ceiling and self._windows >= 4 and now - self._tried >= REST
        if not (self._windows >= self._patience or rested) or not self._matters():
            return None
        limit, (more, less) = self.limit, self._owed
        may_rise = limit < self.ceiling and (rested or not more)
        may_fall = limit > 1 and (crowded or limit < self.ceiling) and (rested or not less)
        if may_fall and (self._down or not may_rise):
            return max(1, round(limit * (0.7 if limit > 64 else 0.5)))
        return self._more(2 if self._vain < 2 else 1.5) if may_rise else None

    # ------------------------------------------------------------------------------- TRY

    def _try(self, sight: Sight, limit: int) -> None:
        """Go to another limit, for some windows."""
        self._from, self.limit, self.stage = self.limit, limit, TRY
        self._down = limit < self._from
        self._rates, self._tried, self._all = (), sight.now, 0
        self._new_window(sight.now, sight.active)
        if not self._down:
            self._settles, self._to_end = True, self._from
            self._look_again(sight.active)

    def _settle(self, sight: Sight, good: int) -> None:
        """Wait until as few are active as the limit allows."""
        assert self._since is not None
        self._good += good
        self._to_end -= sight.ended
        here = sight.executing > 0.85 * self.limit or self._to_end < -self.limit  # threads take time to begin
        if sight.active <= self.limit and self._to_end <= 0 and (here or self._down):
            self._new_window(sight.now, sight.active)
        elif self.stage is TRY and self._is_hopeless(sight.now):
            self._reject(sight, self._rate(sight.now))
        else:
            self._look_again(sight.active)

    def _booms(self, now: float) -> bool:
        """A higher limit has brought so much more that there is no need to wait for a whole window."""
        first = self._rise.first
        if self.stage is not TRY or self._down or not self._base or not first:
            return False
        due = self._base * (now - self._tried)
        wanted = max(1.1 * (1 + 0.3 * (self.limit / self._from - 1)), exp(2 * sqrt(self._noise)))
        return now - self._tried >= 1.5 * first and self._all >= max(wanted * due, due + 8, due + 3 * sqrt(due))

    def _is_hopeless(self, now: float) -> bool:
        """So little gets done that the verdict is clear."""
        assert self._since is not None
        if self._base is None:
            return False
        passed = now - self._since
        due = self._base * passed
        if passed < SPANS * (self._alone or 0.0):
            return False
        return due >= max(6, self._from / 2) and self._good < due * exp(-max(HOPELESS, 2 * sqrt(self._noise)))

    def _judge(self, sight: Sight) -> None:
        """A window at the limit tried is over."""
        rate = self._rate(sight.now)
        if not self._base:
            self._accept(sight, rate)
            return
        self._rates = *self._rates, rate
        mean = len(self._rates) / sum(1 / each for each in self._rates)
        gain = log(mean / self._base)
        verdict = self._of_less(gain, mean) if self._down else self._of_more(gain)
        if verdict is None:
            self._new_window(sight.now, sight.active)
        elif verdict:
            self._accept(sight, mean)
        else:
            self._reject(sight, mean)

    def _of_less(self, gain: float, rate: float) -> bool | None:
        """Does a lower limit pay? None: it can't be told yet."""
        doubt = sqrt(self._noise / len(self._rates))
        if gain >= 0.05 + doubt and (self._from < self.ceiling or len(self._rates) > 1):
            return True
        if gain <= -0.05 - (0.05 if self._from >= self.ceiling else doubt):
            return False
        if len(self._rates) < 3:
            return None
        return gain >= (-0.04 if self.limit >= self.enough and log(rate / self._best) > -0.08 else 0.05)

    def _of_more(self, gain: float) -> bool | None:
        """Does a higher limit pay? None: it can't be told yet."""
        wanted = log(1 + 0.3 * (self.limit / self._from - 1))
        doubt = sqrt(self._noise / len(self._rates))
        if gain >= wanted + doubt:
            return True
        if gain <= wanted - doubt:
            return False
        return None if len(self._rates) < 3 else gain >= wanted + doubt / 2

    def _accept(self, sight: Sight, rate: float) -> None:
        """Stay there, and go on in the same direction at once."""
        self._base = rate
        self._best = max(self._best, rate) if self._down else rate
        self._vain, self._patience, self._streak = 0, 1, True
        self._go_on(sight, 1)
        limit = self.limit
        if self._down and limit > 1:
            self._try(sight, max(1, limit // 2))
        elif not self._down and limit < self.ceiling:
            self._try(sight, self._more(2))

    def _reject(self, sight: Sight, rate: float) -> None:
        """Go back, and rest for longer before the next try, which goes the other way."""
        assert self._since is not None
        if self._base:
            lost = max(0.0, (self._base - rate) * (sight.now - self._since))
            more, less = self._owed
            self._owed = (more, less + lost) if self._down else (more + lost, less)
            if self._down and self._from >= self.ceiling:
                self._alone = self._mean_executing() / max(rate, 1e-9)  # that is how long they take here
        self.limit = self._from
        # After a streak it is known what is on the other side, and more places do less harm than too few.
        self._down, self._vain = not (self._down or self._streak), self._vain + (2 if self._streak else 1)
        self._streak = False
        self._patience = 1 if self._vain < 2 else min(4 * 2**self._vain, 64)
        self._go_on(sight, 0)

    def _give_up(self, sight: Sight) -> None:
        """The window is void: nearly all failed."""
        if self.stage is TRY:
            self.limit = self._from
            self._go_on(sight, 0)
        self._new_window(sight.now, sight.active)

    def _go_on(self, sight: Sight, windows: int) -> None:
        self.stage = STAY
        self._windows, self._odd, self._tried = windows, 0, sight.now
        self._new_window(sight.now, sight.active)
