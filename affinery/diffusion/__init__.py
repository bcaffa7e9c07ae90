"""Noise schedules, training objectives and samplers; the arithmetic of schedules is diffusers'."""
