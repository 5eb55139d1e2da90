"""The ways a plan is executed."""
