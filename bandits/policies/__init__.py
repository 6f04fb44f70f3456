"""Policies: pure functions over a pytree of parameters."""

from bandits.policies.base import Params, Policy, distill
from bandits.policies.categorical import (
    context_linear,
    context_network,
    context_residual,
    log_linear,
    tabular_softmax,
)
from bandits.policies.sequences import all_sequences, causal_transformer, product_of_tokens
from bandits.policies.variable_length import all_responses, hazard_table, recurrent

__all__ = [
    "Params",
    "Policy",
    "all_responses",
    "all_sequences",
    "causal_transformer",
    "context_linear",
    "context_network",
    "context_residual",
    "distill",
    "hazard_table",
    "log_linear",
    "product_of_tokens",
    "recurrent",
    "tabular_softmax",
]
