"""The command line: flags, config files, and errors that users can act on."""
