"""The version, said here alone: pyproject.toml and the command line read it."""

__version__ = "0.1.0"
