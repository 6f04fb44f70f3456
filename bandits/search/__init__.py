"""Searches: a grid of training runs described as data, and what performs one run of it."""

from bandits.search.parse import parse_spec, read_spec
from bandits.search.runs import Plan, plan
from bandits.search.spec import Spec

__all__ = ["Plan", "Spec", "parse_spec", "plan", "read_spec"]
