"""What a job runs in: its folder, and the processes that it consists of."""
