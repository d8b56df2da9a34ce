"""Pipelines of diffusers: where they come from (places), and an EpsModel out of one (captured)."""
