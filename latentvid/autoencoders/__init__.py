"""Clips to latents and back: image autoencoders frame by frame, their temporal decoders, and latent files."""
