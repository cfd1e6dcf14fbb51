"""Figures from DataFrames and pictures: nothing is queried or computed by a model here."""
