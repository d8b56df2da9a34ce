"""From a model, a solver and seeds to files of images."""
