"""What can be learned from the solvers: scripts that make models, samples and comparisons, and what they share."""
