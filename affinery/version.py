"""The version of this program, for those parts too that load nothing else of it."""

__version__ = "0.1.0"
