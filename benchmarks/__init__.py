"""Measurements of speed and memory; they print ratios, since absolute times mean little on a shared machine."""
