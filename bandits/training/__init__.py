"""Algorithm 1 of T24: what is collected, how long it is used, and the loop over both."""

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
from bandits.training.loop import (
    BASELINE_DECAY,
    Trainer,
    Training,
    make_trainer,
    require_record,
    train,
)
from bandits.training.schedule import Schedule

__all__ = [
    "BASELINE_DECAY",
    "Collect",
    "Label",
    "Minibatch",
    "PairsOfPolicy",
    "Schedule",
    "Trainer",
    "Training",
    "against_own",
    "from_dataset",
    "make_trainer",
    "on_bandit",
    "on_policy",
    "on_whole_space",
    "own_pairs",
    "require_record",
    "train",
    "with_own_samples",
]
