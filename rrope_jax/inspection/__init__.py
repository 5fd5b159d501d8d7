"""What the positions of a checkpoint are: which keys say so, and which runtimes read them so."""
