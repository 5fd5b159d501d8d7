"""The commands of `rrope`, one module each, and the settings read from their configs."""
