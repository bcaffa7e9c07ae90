"""What a workspace stands on, looked at: each part is ok, or it is said how to mend it.

check.py        one thing that was looked at
registry.py     the database: there, of this schema, guarded, its clock
neighbours.py   blob store, MLflow, DVC, Ray
machine.py      GPUs, disk, memory, packages
examination.py  all of it, in order
"""

from affinery_app.doctor.check import FAIL, OK, WARN, Check
from affinery_app.doctor.examination import examine

__all__ = ["FAIL", "OK", "WARN", "Check", "examine"]
