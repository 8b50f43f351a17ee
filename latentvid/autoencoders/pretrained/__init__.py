"""Video autoencoders of others, one file per architecture."""
