"""Planning without tracing: which graphs exist, which one a step needs, and how its inputs are padded."""
