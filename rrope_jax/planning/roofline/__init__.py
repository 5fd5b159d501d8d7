"""How long a step would take: FLOPs, memory traffic, transfers, and sweeps over them."""
