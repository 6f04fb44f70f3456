"""Algorithm 1 of T24: collect responses, label them, and train on them."""

from bandits.training.collect import (
    Collect,
    Label,
    Minibatch,
    PairsOfPolicy,
    against_own,
    from_dataset,
    on_bandit,
    on_policy,
    on_whole_space,
    own_pairs,
    with_own_samples,
)
from bandits.training.descent import descend, log_spaced_steps
from bandits.training.loop import (
    BASELINE_DECAY,
    Trainer,
    Training,
    make_trainer,
    require_record,
    train,
)
from bandits.training.schedule import Schedule
from bandits.training.sources import Data, Source, source_of

__all__ = [
    "BASELINE_DECAY",
    "Collect",
    "Data",
    "Label",
    "Minibatch",
    "PairsOfPolicy",
    "Schedule",
    "Source",
    "Trainer",
    "Training",
    "against_own",
    "descend",
    "from_dataset",
    "log_spaced_steps",
    "make_trainer",
    "on_bandit",
    "on_policy",
    "on_whole_space",
    "own_pairs",
    "require_record",
    "source_of",
    "train",
    "with_own_samples",
]
