"""Recipes that ship with the library."""
