"""Make one page with sliders: where each method takes the policy, for every reward and coverage."""

from bandits.explorer.page import make_page
from bandits.explorer.runs import QUICK, Settings, run

__all__ = ["QUICK", "Settings", "make_page", "run"]
