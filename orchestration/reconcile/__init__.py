"""Our database is the truth; its neighbours are brought back to it, and what differs is told.

One file a neighbour: `attempts` (folders of jobs), `blobs`, `datasets` (DVC), `mlflow_runs`, `ray_folders`.
Each is a generator of findings: what, where, and what was done, or what its owner has to do.
"""

from orchestration.reconcile.findings import Finding
from orchestration.reconcile.report import NEIGHBOURS, Reconciliation, reconcile

__all__ = ["NEIGHBOURS", "Finding", "Reconciliation", "reconcile"]
