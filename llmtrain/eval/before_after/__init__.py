"""A run's model measured before and after training on the same things, item by item."""
