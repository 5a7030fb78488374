"""Evaluations that draw and measure, one file per suite."""
