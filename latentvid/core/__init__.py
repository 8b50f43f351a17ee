"""What every other room stands on; imports nothing else of the package."""
