"""Claims about solvers that can be refuted: each a script that measures, writes rows and reports what came of it."""
