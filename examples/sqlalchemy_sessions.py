"""SQLAlchemy's scoped_session on cmwq: a thread serves many works, so each work gives its session back when it ends.

python examples/sqlalchemy_sessions.py
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

import cmwq

Session = scoped_session(sessionmaker())


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    page: Mapped[str]


def with_session(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The work has a session of its own. At the end it is rolled back unless committed, and its connection is free."""

    @functools.wraps(fn)
    def work(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            Session.remove()

    return work


@with_session
def visit(page: str) -> None:
    Session.add(Visit(page=page))
    Session.commit()


@with_session
def count() -> int:
    return Session.scalar(select(func.count(Visit.id))) or 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder)}/visits.db", pool_size=5, max_overflow=0)
        Base.metadata.create_all(engine)
        Session.configure(bind=engine)
        with cmwq.Executor("database", max_active=5) as executor:  # as many as there are connections
            list(executor.map(visit, [f"/{number}" for number in range(100)]))
            pool: Any = engine.pool
            print(f"{executor.submit(count).result()} visits, {pool.checkedout()} connections in use")
        engine.dispose()
