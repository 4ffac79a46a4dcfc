"""Trained optimizers where they are used. Loads lazily: what is not asked for is not imported."""
