"""How the threads of torch wait for each other, in every process that Affinery starts."""

from __future__ import annotations

SPINNING = {"GOMP_SPINCOUNT": "10000"}
"""How often a waiting thread looks again before it sleeps, by the name in the environment; some 0.1 ms.

A thread that sleeps at once (1,000) is woken at each of a step's thousand barriers: a third of a small
model's step. One that never sleeps (libgomp's own choice) takes the processor from the thread that it waits
for, as soon as anything else runs: up to ten times slower.
"""
