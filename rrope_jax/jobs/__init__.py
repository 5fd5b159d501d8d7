"""One module per command, and what they share: flags, the working folder and the backend."""
