"""The test suite. One thread per process: its arrays are small, and workers that share the cores do not wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy are loaded, here and in the processes that tests start
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
