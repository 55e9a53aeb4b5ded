"""Active learning: which clips are worth labelling."""
