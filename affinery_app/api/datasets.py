"""/v1/datasets: what is learnt from, pinned by content."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi.responses import JSONResponse
from pydantic import Field, model_validator

from affinery_app.api import uploads
from affinery_app.api.calls import After, Caller, Limit, Posting, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Digest, Sent, Word, pages, shape
from orchestration.errors import DatasetInvalid
from registry import datasets
from registry.records import DatasetRecord

router = nouns("/v1/datasets", "datasets")
Dataset = shape(DatasetRecord)


class Pinned(Sent):
    """What a DVC remote of the service's workspace has. Paths on the service's machine are none."""

    md5: str = Field(pattern=r"^[0-9a-f]{32}(\.dir)?$", description="As a .dvc file pins it.")
    remote: Word | None = Field(default=None, description="Its name: the default one, where none is given.")


class NewDataset(Sent):
    """An upload that is a zip or tar archive of images (class_name/*.png …) or a Parquet file; or what a DVC
    remote has: either upload and sha256, or dvc.

    split, skip_bad and the columns of Parquet: as `affinery dataset add` takes them.
    """

    name: Word
    upload: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    sha256: Digest | None = None
    dvc: Pinned | None = None
    licence: Word | None = None
    source: str | None = Field(default=None, max_length=2000, description="Where it comes from, in words.")
    split: Word | None = None
    skip_bad: bool = False
    image_column: Word | None = None
    label_column: Word | None = None
    text_column: Word | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sent = (self.upload is not None, self.sha256 is not None)
        if sent != (self.dvc is None, self.dvc is None):
            raise ValueError("give upload and sha256, or dvc alone")
        return self


class AddedDataset(Dataset):  # type: ignore[misc, valid-type]
    """A dataset version; notes: what is worth knowing of its images."""

    notes: list[str]


@router.get("", response_model=pages(Dataset))
def list_datasets(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every dataset version, oldest first."""
    return page(space, "dataset", datasets.by_id, after, limit)


@router.post("", status_code=201, response_model=AddedDataset)
def create_dataset(space: Space, who: Caller, new: NewDataset, posting: Posting) -> JSONResponse:
    """Check every image of an upload, or of what DVC has, and record the version, as its name's next.

    The same images under the same name give the version that stands. What is in the archive is never
    trusted: links, paths that lead out of it, bombs and what is no image are refused; then nothing is kept.
    """
    from orchestration.additions import add_dataset, adopt_dataset
    from orchestration.datasets.tables import Columns

    asked = new.model_dump()
    with space.sessions.read() as session:
        who.check_tasks(session, new.name)
    if (again := posting.answered(space, asked, "/v1/datasets/{ref}")) is not None:
        return again
    options: dict[str, Any] = {
        "name": new.name,
        "licence": new.licence,
        "source": new.source,
        "split": new.split,
        "skip_bad": new.skip_bad,
        "columns": Columns(new.image_column, new.label_column, new.text_column),
    }
    if new.dvc is not None:
        record, notes = adopt_dataset(space.sessions, space.data, new.dvc.md5, new.dvc.remote, **options)
        return posting.do(space, asked, "/v1/datasets/{ref}", lambda _: record.to_json() | {"notes": notes})
    path = uploads.path_of(space, str(new.upload))
    uploads.check_whole(path, str(new.sha256))
    try:
        record, notes = add_dataset(space.sessions, space.data, path, **options)
    except DatasetInvalid as error:  # who sent it knows nothing of where it lies here
        raise error.called(str(path), "the upload") from error
    made: dict[str, Any] = record.to_json() | {"notes": [_plain(note, str(path)) for note in notes]}
    done = posting.do(space, asked, "/v1/datasets/{ref}", lambda _: made)
    path.unlink(missing_ok=True)
    return done


@router.get("/{ref}", response_model=Dataset)
def get_dataset(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(datasets.get(session, ref).to_json())


def _plain(text: Any, path: str) -> str:
    return str(text).replace(path, "the upload")
