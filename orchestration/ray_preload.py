"""Imported by each process of our own Ray as it starts; see ray_processes."""

from orchestration.ray_processes import preload

preload()
