"""Runs -> verdict; verdict -> terminal, markdown, JSON, page, and the README's table of results. No PyTorch, no Git."""
