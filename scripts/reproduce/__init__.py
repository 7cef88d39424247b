"""Textbook experiments: a module a group of figures, run by `tdraft reproduce`."""
