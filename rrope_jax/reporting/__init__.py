"""What all reports are written with: the look of figures, pieces of markdown."""
