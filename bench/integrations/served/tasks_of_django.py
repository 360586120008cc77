"""Tasks of Django: they have to be functions of a module, which is imported once Django is set up."""

from __future__ import annotations

import time

from django.tasks import task


@task
def nap() -> None:
    time.sleep(0.05)


@task
def nothing() -> None:
    pass
