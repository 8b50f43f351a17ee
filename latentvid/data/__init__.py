"""Training data: procedural worlds, footage folders, pseudo-videos, mixtures, captions and a tokenizer for them."""
