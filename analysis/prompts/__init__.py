"""Prompt sets in one form."""
