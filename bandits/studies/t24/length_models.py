"""Do the length problems depend on what policy and reward model are made of?

A table of hazards or a recurrent network as the policy; a sum of bumps or a multilayer perceptron
as the reward model. All else is as in `length_problems`, on responses half as long.
"""

import dataclasses
import functools
import itertools
from dataclasses import dataclass, field

import xarray as xr
from matplotlib.figure import Figure

from bandits import plotting
from bandits.studies.base import Claim, Experiment
from bandits.studies.curves import draw_bar_row, over_seeds, require_no_nan, with_legend
from bandits.studies.t24.lengths import (
    POLICIES,
    REWARD_MODELS,
    TITLES,
    Lengths,
    ahead_of_others,
    behind_others,
    train_lengths,
)

OFFLINE = ("preference_likelihood", "dpo")
ON_POLICY = ("best_of_n", "ppo", "online_dpo")
NAMES = OFFLINE + ON_POLICY
PROBLEMS = ("min", "skew")
LABELS = {
    "hazard_table": "table",
    "recurrent": "recurrent",
    "bumps": "bumps",
    "network": "network",
}


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
      lengths: the problems; policy, reward model and learning rate of it are varied.
      learning_rates: of Adam, for each of the policies: a network, whose weights serve every
        place, takes smaller steps than a table.
      steps: gradient steps.
      batch: B.
      passes: T of methods that reuse samples.
    """

    lengths: Lengths = field(
        default_factory=lambda: Lengths(max_length=20, mode=6.0, cut=6, seeds=6)
    )
    learning_rates: tuple[float, ...] = (0.03, 0.003)
    steps: int = 400
    batch: int = 200
    passes: int = 4


def run(settings: Settings) -> xr.Dataset:
    """Final gold reward of every method, policy, reward model, problem and seed.

    For on-policy methods the proxy reward too, by ``trained_against``.
    """
    trained = [_train(settings, policy) for policy in POLICIES]
    return xr.concat(trained, "policy").assign_coords(policy=list(POLICIES))


def _train(settings: Settings, policy: str) -> xr.Dataset:
    rate = settings.learning_rates[POLICIES.index(policy)]
    lengths = dataclasses.replace(settings.lengths, policy=policy, learning_rate=rate)
    train = functools.partial(
        train_lengths, lengths, steps=settings.steps, record=(settings.steps,)
    )
    problems = {"problem": list(PROBLEMS)}
    models = {"reward_model": list(REWARD_MODELS)}
    offline = train(OFFLINE, problems)["gold"]
    online = train(ON_POLICY, problems | models, batch=settings.batch, reuse=settings.passes)
    # Offline methods have no reward model: one run stands beside every one.
    gold = xr.concat([offline.expand_dims(models), online["gold"]], "loss")
    proxy = online["proxy"].rename(loss="trained_against")
    return xr.Dataset({"gold": gold, "proxy": proxy}).isel(step=-1, drop=True)


def plot(dataset: xr.Dataset) -> Figure:
    """A panel a problem: the true reward of every method, by policy and reward model."""
    figure = plotting.new_figure(15, 6)
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(0.065, 0.22, 0.99, 0.91, wspace=0.05)
    models = list(itertools.product(POLICIES, REWARD_MODELS))
    stacked = dataset.stack(model=("policy", "reward_model"))
    for axes, problem in zip(panels, PROBLEMS, strict=True):
        for i, name in enumerate(NAMES):
            one = stacked["gold"].sel(loss=name, problem=problem)
            draw_bar_row(
                axes,
                one.drop_vars(["model", "policy", "reward_model"]).assign_coords(
                    model=range(len(models))
                ),
                "model",
                shift=0.16 * (i - 2),
                width=0.15,
                color=plotting.METHOD_COLORS[name],
                label=plotting.METHOD_LABELS[name],
            )
        axes.set_xticks(range(len(models)), [f"{LABELS[p]}\n{LABELS[m]} reward" for p, m in models])
        axes.set_title(TITLES[problem])
    panels[0].set_ylabel("true reward, maximum lengths")
    return with_legend(figure, panels[0], ncols=len(NAMES))


def judge(dataset: xr.Dataset) -> list[Claim]:
    """Pref-FT against the next worst, online DPO against the next best, by models; by seed."""
    require_no_nan(dataset)
    claims = []
    for policy, model in itertools.product(POLICIES, REWARD_MODELS):
        one = dataset["gold"].sel(policy=policy, reward_model=model)
        what = f"{LABELS[policy]} policy, {LABELS[model]} reward"
        lowest, behind = behind_others(one, "preference_likelihood")
        rival, ahead = ahead_of_others(one, "online_dpo")
        claims += [
            EXPERIMENT.claim(
                f"On average over Min and Skew Pref-FT ends worst, {what}: true reward of the next "
                f"worst, {plotting.METHOD_LABELS[lowest]}, minus its own",
                behind,
                behind.low > 0,
                asserted=False,
            ),
            EXPERIMENT.claim(
                f"and no method ends better than online DPO: its reward minus that of the best "
                f"other, {plotting.METHOD_LABELS[rival]} (holds if surely above -0.025, half a "
                "token)",
                ahead,
                ahead.low > -0.025,
                asserted=False,
            ),
        ]
    proxy = dataset["proxy"].rename(trained_against="loss")
    excess = (proxy - dataset["gold"].sel(loss=list(ON_POLICY))).sel(problem="skew")
    gap = over_seeds(excess.sel(reward_model="network") - excess.sel(reward_model="bumps"))
    return [
        *claims,
        EXPERIMENT.claim(
            "On Skew a network promises more than bumps do: proxy minus true reward where "
            "on-policy methods end, difference",
            gap,
            gap.low > 0,
            asserted=False,
        ),
    ]


EXPERIMENT = Experiment(
    name="length_models",
    source="T24, section 4.2: synthetic length problems",
    question="Does the best method depend on the class of policy and reward model?",
    full=Settings(),
    quick=Settings(
        lengths=Lengths(max_length=8, mode=3.0, cut=3, seeds=2, pairs=100, bumps=4, width=4),
        steps=20,
    ),
    run=run,
    plot=plot,
    judge=judge,
)
