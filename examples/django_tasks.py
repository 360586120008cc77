"""Django Tasks in this process, without a worker process and without a number of threads. NOT DURABLE: see the docs.

    python examples/django_tasks.py

enqueues 50 mails that take 0.2 s each, one that is urgent, one for later, and one that fails.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import django  # type: ignore[import-not-found,import-untyped,unused-ignore]
from django.conf import settings  # type: ignore[import-not-found,import-untyped,unused-ignore]
from django.tasks import task  # type: ignore[import-not-found,import-untyped,unused-ignore]
from django.utils import timezone  # type: ignore[import-not-found,import-untyped,unused-ignore]

sys.modules.setdefault("django_tasks", sys.modules[__name__])  # Django finds a task by the name of its module
settings.configure(
    TASKS={"default": {"BACKEND": "cmwq.contrib.django.ThreadBackend", "OPTIONS": {"max_active": 25}}}, USE_TZ=True
)
django.setup()

began = time.monotonic()
sent: list[str] = []


@task  # type: ignore[misc,untyped-decorator,unused-ignore]
def send_mail(to: str) -> str:
    time.sleep(0.2)  # a mail server
    sent.append(to)
    return f"{to} at {time.monotonic() - began:.1f} s"


@task  # type: ignore[misc,untyped-decorator,unused-ignore]
def fail() -> None:
    raise ConnectionError("the mail server is away")


def finished(result: Any) -> Any:
    while not result.is_finished:
        time.sleep(0.01)
        result.refresh()
    return result


def main() -> None:
    mails = [send_mail.enqueue(f"user{number}") for number in range(50)]
    urgent = send_mail.using(priority=10).enqueue("urgent")
    later = send_mail.using(run_after=timezone.now() + timedelta(seconds=1)).enqueue("later")
    failed = fail.enqueue()
    for each in mails:
        finished(each)
    print(f"50 mails of 0.2 s, at most 25 at a time: {time.monotonic() - began:.1f} s")
    print(f"{finished(urgent).return_value}, before {50 - sent.index('urgent')} that were enqueued earlier")
    print(finished(later).return_value)
    print("failed:", finished(failed).errors[0].exception_class_path)


if __name__ == "__main__":
    main()
