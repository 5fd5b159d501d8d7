"""What every report is made of: tables, figures, labels, and the files they are written to."""
