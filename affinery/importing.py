"""Libraries whose modules import each other in rings are imported by one thread at a time.

Python lets two threads go on that would wait for each other's modules, and one of them then sees a module
that is half made: its names are missing, and the import fails. `with IMPORTING:` stands around every import,
in a function, of these libraries and of our own modules that begin with one.
"""

from threading import RLock

IN_RINGS = ("accelerate", "diffusers", "timm", "transformers")
IMPORTING = RLock()
