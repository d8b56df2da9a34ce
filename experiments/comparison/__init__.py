"""Which solver, which grid and how many evaluations a model needs: cells, reference solution, measures, ranking and report."""
