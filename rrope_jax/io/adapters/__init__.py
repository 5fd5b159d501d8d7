"""Low-rank updates of a model's weights, kept apart from them."""
