"""The sentences at the top of the page: how the process is, and why no more workers were started.

Guarantees: every picture gets a verdict, and its tone is one of `TONES`. What the process itself says (`why` of a pool
or of a queue) is quoted as it is.
"""

from __future__ import annotations

from typing import Any

from cmwq._core.naming import counted, noun

TONES = ("rest", "good", "busy", "bad", "gone")
"""Nothing to do; all that was queued is worked on; works wait; stalled; there is no process any more."""
LONGEST = 600  # characters of what is quoted


def verdict(picture: dict[str, Any]) -> dict[str, str]:
    """How the process is in this picture: {"tone", "title", "text"}."""
    pools, queues = picture.get("pools", []), picture.get("queues", [])
    running, blocked = total(pools, "running"), total(pools, "blocked")
    pending = total(pools, "pending")
    inactive = total(queues, "inactive")
    stalled = current_stalls(picture)
    if stalled:
        newest = stalled[-1]
        more = f" And {counted(len(stalled) - 1, 'more stall')}." if len(stalled) > 1 else ""
        return _verdict("bad", "Stalled", first_sentence(str(newest.get("text", ""))) + more)
    if picture.get("frozen"):
        return _verdict("busy", "Frozen", "Works of freezable queues begin only after cmwq.thaw().")
    if any(pool.get("held") for pool in pools):
        return _verdict("busy", "Memory is short", _why("pool", pools) or "No worker is started beside those that run.")
    doing = f"{counted(running, 'worker')} {noun(running, 'runs', 'run')}, {counted(blocked, 'is', 'are')} blocked"
    if pending:
        return _verdict(
            "busy", f"{counted(pending, 'work waits', 'works wait')} for a worker", _join(doing, _why("pool", pools))
        )
    if inactive:
        title = f"{counted(inactive, 'work waits', 'works wait')} for a place in {noun(inactive, 'its', 'their')} queue"
        return _verdict("busy", title, _join(doing, _why("queue", queues)))
    if running or blocked:
        return _verdict("good", "No work waits", f"{doing[0].upper()}{doing[1:]}.")
    return _verdict("rest", "Nothing to do", "No work waits, and no worker has one.")


def current_stalls(picture: dict[str, Any]) -> list[dict[str, Any]]:
    """The stalls that are not over, the oldest first."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for stall in picture.get("stalls", []):
        place = (str(stall.get("pool", "")), str(stall.get("queue", "")))
        newest.pop(place, None)
        newest[place] = stall
    return [stall for stall in newest.values() if not stall.get("over")]


def first_sentence(text: str) -> str:
    """The first line, which says what stalls; stacks follow it."""
    line = text.strip().split("\n", 1)[0].strip().rstrip(":")
    line = line[:1].upper() + line[1:LONGEST] + ("…" if len(line) > LONGEST else "")
    return line if not line or line.endswith((".", "!", "?")) else line + "."


def total(views: list[dict[str, Any]], key: str) -> int:
    return sum(int(view.get(key) or 0) for view in views)


def _verdict(tone: str, title: str, text: str) -> dict[str, str]:
    return {"tone": tone, "title": title, "text": text}


def _why(what: str, views: list[dict[str, Any]]) -> str:
    """What the pool or queue says in which most works wait."""
    saying = [view for view in views if view.get("why")]
    most = max(saying, key=lambda view: (view.get("pending") or 0) + (view.get("inactive") or 0), default=None)
    if most is None:
        return ""
    others = len({view["why"] for view in saying}) - 1
    return f"{what} {most['name']}: {most['why']}" + (f" ({others} more below)" if others else "")


def _join(doing: str, why: str) -> str:
    doing = f"{doing[0].upper()}{doing[1:]}."
    return f"{doing} {first_sentence(why)}" if why else doing
