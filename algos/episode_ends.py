"""Where episodes ended in a rollout of N accounts, and with what."""

import torch
from torch import Tensor


class EndsPicked:
    """Ends of episodes, picked out as they come: the less work where the host computes itself.

    Args:
        accounts: Number of accounts N.
    """

    def __init__(self, accounts: int) -> None:
        self._accounts = accounts
        self._rows: list[Tensor] = []
        self._finals: list[Tensor] = []
        self._episodes: list[Tensor] = [torch.empty(2, 0)]

    def add(self, t: int, truncated: Tensor, final: Tensor, done: Tensor, total: Tensor, length: Tensor) -> None:
        """Take in step ``t``: masks [N], final observations [N, D], returns and lengths [N] of the episodes."""
        rows = truncated.nonzero().squeeze(1)
        self._rows.append(rows + t * self._accounts)
        self._finals.append(final[rows])
        self._episodes.append(torch.stack((total[done], length[done])))

    def truncations(self, truncated: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [M] of truncations among the T * N of the rollout, and their final observations [M, D]."""
        if not self._rows:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        return torch.cat(self._rows), torch.cat(self._finals)

    def episodes(self, done: Tensor) -> Tensor:
        """Returns and lengths [2, E] of finished episodes."""
        return torch.cat(self._episodes, dim=1)


class EndsKept:
    """The same to the bit without asking the device during the rollout: all is kept, and picked out at its end.

    Args:
        observation: Observations [T, N, D], for their shape.
    """

    def __init__(self, observation: Tensor) -> None:
        self._finals = torch.empty_like(observation)
        self._episodes = observation.new_empty(2, *observation.shape[:2])

    def add(self, t: int, truncated: Tensor, final: Tensor, done: Tensor, total: Tensor, length: Tensor) -> None:
        """See ``EndsPicked``."""
        self._finals[t], self._episodes[0, t], self._episodes[1, t] = final, total, length

    def truncations(self, truncated: Tensor) -> tuple[Tensor, Tensor]:
        """See ``EndsPicked``; ``truncated`` is [T, N]."""
        rows = truncated.flatten().nonzero().squeeze(1)
        return rows, self._finals.flatten(0, 1).index_select(0, rows)

    def episodes(self, done: Tensor) -> Tensor:
        """See ``EndsPicked``; ``done`` is [T, N]."""
        return self._episodes[:, done]
