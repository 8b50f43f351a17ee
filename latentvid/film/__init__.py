"""Films as files: made window by window into a folder that can be resumed, extended and edited."""
