"""Models, and the base classes they are made of."""
