"""Building blocks of reports: tables, figures, labels, and files of results."""
