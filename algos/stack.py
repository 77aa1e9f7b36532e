"""Policies bound to a market: what ``envs.replay`` asks about the rows of a backtest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from algos.policy import EnsemblePolicy, Policy, mean_target, padded
from envs.mapping import round_targets
from envs.replay import Answer


def decide_on(policies: Sequence[Policy | EnsemblePolicy], features: Tensor, rows: int | None = None) -> "PolicyStack":
    """Bind policies to a market.

    Args:
        policies: In the order of their rows.
        features: [T, F] scaled features of the whole market, of which only the past of a bar is read.
        rows: Consecutive rows of each policy; None: all rows belong to the only one.

    Raises:
        ValueError: If several policies share an unknown number of rows.
    """
    if rows is None and len(policies) > 1:
        raise ValueError("several policies need the number of rows of each")
    return PolicyStack(policies, features, rows)


class PolicyStack:
    """Several policies side by side, each over rows of its own: what they decide alone, to the bit.

    Every network runs once per bar asked about, over the rows of its own policy and of the ensembles it is a member
    of. What it makes of the market is computed for all bars at once. Not safe for threads.

    Args:
        policies: Policies and ensembles in the order of their rows; members that are the same object are one.
        features: [T, F] scaled features of the whole market.
        rows: Number of consecutive rows of each; None for any number of the only one.

    Raises:
        ValueError: If features, mapping or leverage of the networks differ.
    """

    def __init__(self, policies: Sequence[Policy | EnsemblePolicy], features: Tensor, rows: int | None) -> None:
        self._shares = [policy.shares if isinstance(policy, EnsemblePolicy) else None for policy in policies]
        self._teams = [policy.members if isinstance(policy, EnsemblePolicy) else (policy,) for policy in policies]
        self._networks = list({id(network): network for team in self._teams for network in team}.values())
        about = {
            (n.feature_names, n.account_columns, n.action_map.mapping, n.action_map.leverage) for n in self._networks
        }
        if len(about) > 1:
            raise ValueError("policies of a stack need the same inputs, mapping and leverage")
        if features.shape[1] != len(self._networks[0].feature_names):
            wanted = len(self._networks[0].feature_names)
            raise ValueError(f"the policies expect {wanted} features, the market has {features.shape[1]}")
        self._features, self._rows = features, rows
        self._bars = range(0)
        self._sums: list[Tensor] = []

    def among(self, rows: Tensor, bars: range) -> Answer:
        """What decides for rows ``rows`` [M] at any of ``bars``; see ``envs.replay.Decide``."""
        if bars != self._bars:
            self._bars, self._sums = bars, [n.market_sums(self._features, bars) for n in self._networks]
        asker = rows // self._rows if self._rows else torch.zeros_like(rows)
        place, passes, size = [], [], 0
        for network, sums in zip(self._networks, self._sums, strict=True):
            member = torch.tensor([network in team for team in self._teams])
            own = member[asker].nonzero().squeeze(1)
            where = torch.full((len(rows),), -1)
            where[own] = torch.arange(size, size + len(own))
            place.append(where)
            if len(own):
                size += len(own)
                passes.append((network, sums, padded(own.unsqueeze(1)).squeeze(1), len(own)))
        # Targets of all passes, then those of the ensembles; from there every row takes its own.
        order, means = torch.empty(len(rows), dtype=torch.int64), []
        for number, team in enumerate(self._teams):
            own = (asker == number).nonzero().squeeze(1)
            sources = [place[self._networks.index(network)][own] for network in team]
            shares = self._shares[number]
            if len(team) == 1:
                order[own] = sources[0]
            elif len(own):
                order[own] = torch.arange(size, size + len(own))
                means.append((len(team), torch.cat(sources), shares))
                size += len(own)
        first, leverage = bars.start, self._networks[0].action_map.leverage
        columns = self._networks[0].prior_at
        prior = None
        if columns is not None and self._networks[0].action_map.mapping == "residual":
            prior = self._features[bars.start : bars.stop, columns].double()
        straight = bool((order == torch.arange(len(rows))).all()) and not means
        maps = [network.action_map for network, *_ in passes]
        alike = len(set(maps)) == 1 and prior is None and not maps[0].brakes

        def answer(at: Tensor, account: Tensor) -> Tensor:
            if first:
                at = at - first
            actions = []
            for network, sums, chosen, count in passes:
                seen = sums.index_select(0, at.index_select(0, chosen))
                actions.append(network.actions(seen, account.index_select(0, chosen))[:count])
            if alike:
                joined = actions[0] if len(actions) == 1 else torch.cat(actions)
                targets = round_targets(maps[0].targets(joined))
            else:
                wanted = []
                for own_map, own, (_, _, chosen, count) in zip(maps, actions, passes, strict=True):
                    rows = chosen[:count]
                    leans = None if prior is None else prior.index_select(0, at.index_select(0, rows))
                    held = account.index_select(0, rows)[:, :2] * leverage if own_map.brakes else None
                    wanted.append(own_map.targets(own, leans, held))
                targets = round_targets(torch.cat(wanted))
            if straight:
                return targets
            teams = []
            for count, sources, shares in means:
                of_team = targets.index_select(0, sources).view(count, -1, 2).unbind()
                teams.append(mean_target(of_team, shares))
            return torch.cat((targets, *teams)).index_select(0, order)

        return answer
