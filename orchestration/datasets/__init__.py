"""Datasets: what comes in is checked, packed and pinned under DVC, and checked again before every training.

sources.py       what a source is (a folder, an archive, Parquet, a pack), opened as a listing of images
folders.py       class folders, splits, metadata beside images; archives.py, tables.py unpack into such
importing.py     every image read, checked, packed; then pinned
repository.py    DVC: pins, remotes, what is missing fetched again; states.py: what lies where
contact_sheet.py a picture of what is in a dataset
"""

from orchestration.datasets.importing import ImportedDataset, import_dataset
from orchestration.datasets.repository import ensure, init_data

__all__ = ["ImportedDataset", "ensure", "import_dataset", "init_data"]
