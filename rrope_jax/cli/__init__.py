"""The command line: flags, config files, and errors that a user can act on."""
