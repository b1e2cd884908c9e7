"""Measurements of speed, memory and fit; they import dal_jax, never the reverse."""
