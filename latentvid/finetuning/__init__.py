"""Finetuning an image decoder in time on the user's own footage: from files to a trained decoder with its figures."""
