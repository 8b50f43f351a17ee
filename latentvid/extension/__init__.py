"""Films longer than a window: the plan, the overlap rules, the rollout."""
