"""The proof on a machine: the demo and its record, what an environment can do, a network's check, and a trace of two steps."""
