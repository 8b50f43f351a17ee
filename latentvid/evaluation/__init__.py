"""Metrics run over reconstructions, samples and long films, written as tables, JSON and pictures."""
