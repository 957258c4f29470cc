"""Kept runs compared: the report's data, the verdict, the words for it, and a module for each way to show it."""
