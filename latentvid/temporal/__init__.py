"""Layers across frames, and the one mechanism that injects them into image networks."""
