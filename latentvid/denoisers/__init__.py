"""Networks that estimate clean latents, and the call that hides them."""
