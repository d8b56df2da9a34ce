"""Features of images, and what samples measure in them against a reference, each number with its standard error."""
