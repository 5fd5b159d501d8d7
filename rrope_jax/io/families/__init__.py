"""The model families that are read, trained and written: one small file each (see `family`)."""
