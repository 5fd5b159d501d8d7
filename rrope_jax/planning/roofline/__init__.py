"""Estimates the time of a step from FLOPs, memory traffic and transfers; sweeps over meshes."""
