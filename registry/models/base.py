"""The common base of the tables: how constraints are named, and which Python type is which column."""

from datetime import datetime
from typing import Any, ClassVar, cast

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import DeclarativeBase

from registry.columns import Json, UtcDateTime


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that a migration can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[str]: Json,
        list[int]: Json,
    }

    @classmethod
    def rows(cls) -> Table:
        """The table itself. Statements of it pass by what the session does for objects, which costs most."""
        return cast("Table", cls.__table__)
