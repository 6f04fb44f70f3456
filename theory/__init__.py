"""Closed forms: one module per result, on plain arrays ``[..., K]`` of K categories.

Nothing here knows of bandits, policies or training; simulations are held to these formulas.
"""
