"""`qfleet eval`: score a trained run over fresh greedy episodes."""

from __future__ import annotations

import argparse
import json

import numpy as np

from qfleet.api import load_policy, load_run_config, play_episodes
from qfleet.common.envs import describe_environment
from qfleet.common.seeding import seed_int
from qfleet.run_files.find_runs import find_run
from qfleet.settings.config import Config


def main(args: argparse.Namespace) -> int:
    """Evaluate `args.run` over `args.episodes`; seeds are disjoint from those of training."""
    policy = load_policy(args.run, allow_code=args.allow_code)
    config = load_run_config(args.run)
    seed = seed_int(config.seed, "eval.command") if args.seed is None else args.seed
    returns, _, n_cut = play_episodes(
        policy, find_run(args.run), args.episodes, seed, allow_code=args.allow_code
    )
    threshold, whose = _threshold(config)
    report = {
        "run": str(find_run(args.run)),
        "params": str(policy.path),
        "env_id": config.env.factory or config.env.id,
        "episodes": len(returns),
        "cut_episodes": n_cut,
        "seed": seed,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_median": float(np.median(returns)),
        "return_max": float(returns.max()),
        "threshold": threshold,
    }
    if args.json:
        print(json.dumps(report))
        return 0
    print(f"{report['params']} on {report['env_id']}, {len(returns)} greedy episodes, seed {seed}")
    print(
        f"return {report['return_mean']:.1f} ± {report['return_std']:.1f} (mean ± std)  "
        f"min {report['return_min']:g}  median {report['return_median']:g}  "
        f"max {report['return_max']:g}"
    )
    if n_cut:
        print(f"{n_cut} of them were cut: no episode plays on beyond eval.max_episode_steps")
    if threshold is not None:
        verdict = "reached" if returns.mean() >= threshold else "not reached"
        print(f"the {whose} threshold of {threshold:g} is {verdict}")
    return 0


def _threshold(config: Config) -> tuple[float | None, str]:
    """The return at which the run counts as solved, and where it comes from."""
    wanted = config.eval.solved_at_return
    if wanted != "auto":
        return wanted, "run's own"
    return describe_environment(config.env).reward_threshold, "registered"
