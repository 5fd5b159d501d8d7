"""The environment of a job: its working folder and its processes."""
