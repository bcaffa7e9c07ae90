"""MLflow, reached through a spool: what is to be recorded is on our own disk first, then replayed in order.

runs.py         what the rest of Affinery speaks to: begin a run, log, end it, bring MLflow up to date
spool.py        the files of the spool
replay.py       one operation of the spool, told to MLflow
trainings.py    what is told of a training; compositions.py: of a composition
"""

from orchestration.tracking.runs import Point, Tracking, open_tracking

__all__ = ["Point", "Tracking", "open_tracking"]
