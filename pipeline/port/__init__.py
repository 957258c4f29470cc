"""Port a script that was written for a GPU: say which of its lines are bound to one, and rewrite those that compute the same."""
