"""PPO as a plain torch loop, without any framework: the ceiling that frameworks are measured against.

It samples from the product's environment and does nothing that PPO does not need: no metrics, no averaged weights, no
checks. What it computes is what ``PairPPO`` computes: a squashed Gaussian, generalised advantages, standardised over
the batch, the clipped surrogate, the squared error of the critic, one clip by the norm of all gradients, AdamW.
"""

import torch
from torch import Tensor

from benchmarks.arena import Arena, Network
from rayconf.keys import torch_seed

VALUE_ROWS = 8192


class PlainLoop:
    """Rollouts, advantages and updates on tensors.

    Args:
        setting: Market and hyperparameters.
        key: Key of the random streams.
    """

    def __init__(self, setting: Arena, key: int) -> None:
        self.ppo = setting.run.ppo
        self.net: Network = setting.network()
        self.env = setting.env(self.ppo.num_envs, key)
        self.parameters = self.net.parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=setting.run.optimizer.learning_rate, weight_decay=0.0, fused=True
        )
        self.max_grad_norm = setting.run.optimizer.max_grad_norm
        self.noise = torch.Generator().manual_seed(torch_seed(key, "benchmark", "actions"))
        self.order = torch.Generator().manual_seed(torch_seed(key, "benchmark", "minibatches"))
        self.current = self.env.reset()

    def update(self) -> None:
        """One PPO update: sample a batch, then all epochs over it."""
        self.learn(*self.rollout())

    @torch.no_grad()
    def rollout(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observations [B, D], latents [B, 2], their log densities, standardised advantages and value targets [B]."""
        steps, n, net, current = self.ppo.rollout_steps, self.ppo.num_envs, self.net, self.current
        noise = torch.randn(steps, n, 2, generator=self.noise)
        scaled = noise * net.log_std.exp()
        observation = torch.empty(steps, n, current.shape[1])
        latent, reward = torch.empty(steps, n, 2), torch.empty(steps, n)
        ends = torch.zeros(steps, n, dtype=torch.bool)
        bootstrap = torch.zeros(steps, n)
        growth = []
        for t in range(steps):
            observation[t] = current
            latent[t] = chosen = net.pi(current) + scaled[t]
            step = self.env.step(torch.tanh(chosen))
            reward[t] = step.reward
            growth.append(step.log_growth)
            if step.final_observation is not None:
                ends[t] = step.terminated | step.truncated
                rows = step.truncated.nonzero().squeeze(1)
                bootstrap[t, rows] = net.vf(step.final_observation[rows]).squeeze(-1)
            current = step.observation
        self.current = current
        self.env.observe_tail(torch.stack(growth))
        flat = observation.reshape(steps * n, -1)
        value = torch.cat([net.vf(block) for block in flat.split(VALUE_ROWS)]).reshape(steps, n)
        following = torch.where(ends, bootstrap, torch.cat((value[1:], net.vf(current).T)))
        delta = reward + self.ppo.gamma * following - value
        carry = self.ppo.gamma * self.ppo.gae_lambda * (~ends).float()
        advantage, running = torch.empty_like(delta), torch.zeros(n)
        for t in range(steps - 1, -1, -1):
            running = torch.addcmul(delta[t], carry[t], running)
            advantage[t] = running
        target = (advantage + value).flatten()
        standard = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-4)
        density = (-0.5 * noise.square() - net.log_std).sum(-1)
        return flat, latent.reshape(steps * n, 2), density.flatten(), standard.flatten(), target

    def learn(self, observation: Tensor, latent: Tensor, density: Tensor, advantage: Tensor, target: Tensor) -> None:
        """All epochs over one batch."""
        net, ppo = self.net, self.ppo
        columns = (observation, latent, density, advantage, target)
        for _ in range(ppo.epochs):
            for index in torch.randperm(len(target), generator=self.order).split(ppo.minibatch_size):
                seen, chosen, old, gain, aim = (column.index_select(0, index) for column in columns)
                scaled = (chosen - net.pi(seen)) * torch.exp(-net.log_std)
                ratio = torch.exp((-0.5 * scaled.square() - net.log_std).sum(-1) - old)
                surrogate = torch.min(gain * ratio, gain * ratio.clamp(1 - ppo.clip, 1 + ppo.clip))
                error = net.vf(seen).squeeze(-1) - aim
                loss = ppo.value_coeff * error.square().mean() - surrogate.mean()
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm, foreach=True)
                self.optimizer.step()
