"""Reading and writing of models and training state."""
