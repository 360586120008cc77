"""Sensors notice that a worker is blocked: the sentinel, procfs, or hints. See README.md beside this file.

All three keep the same promises; they differ in how soon they notice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cmwq._sensor import hints, procfs, sentinel

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Sensor

_MODULES = {"sentinel": sentinel, "procfs": procfs, "hints": hints}
NAMES = tuple(_MODULES)
"""The names of the sensors, the best first."""


def why_not(name: str) -> str | None:
    """Why that sensor does not work here; None: it does. Raises KeyError for an unknown name."""
    reason: str | None = _MODULES[name].usable()
    return reason


def choose(host: Host, name: str | None = None) -> Sensor:
    """Make the sensor of that name, or of CMWQ_SENSOR, or the best that works here; its `reason` says why.

    Raises ValueError for an unknown name, RuntimeError if the one asked for does not work here.
    """
    wanted = name or os.environ.get("CMWQ_SENSOR") or None
    if wanted is not None and wanted not in NAMES:
        raise ValueError(f"CMWQ_SENSOR: {wanted!r} is none of {', '.join(NAMES)}")
    if wanted is not None:
        reason = why_not(wanted)
        if reason is not None:
            raise RuntimeError(f"the sensor {wanted!r} was asked for and does not work here: {reason}")
        return _make(wanted, host, "asked for by CMWQ_SENSOR or by name")
    passed_over: list[str] = []
    for candidate in NAMES:
        reason = why_not(candidate)
        if reason is None:
            return _make(candidate, host, "; ".join([*passed_over, "the best that works here"]))
        passed_over.append(f"not {candidate}: {reason}")
    raise AssertionError("hints work everywhere")


def _make(name: str, host: Host, reason: str) -> Sensor:
    sensor: Sensor = _MODULES[name].make(host, reason)
    return sensor
