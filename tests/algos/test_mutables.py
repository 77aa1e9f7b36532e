"""Every number that PBT may mutate is in force at the first update after an exploit, not merely written in a config.

Each proof looks at what that update did: parameters, gradients, losses, minibatches, rewards, fills. It has to hold
for an algorithm with the new value, and to fail for one that goes on with the old value. ``MUTABLE`` is the list of
cases, so that a field cannot be made mutable without a proof here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from algos.config import PairPPOConfig
from algos.direct import Course, objective
from algos.distribution import SquashedGaussian
from algos.gae import gae
from algos.markets import market_for
from algos.pair_ppo import PairPPO
from envs import ledger
from rayconf.run_config import RunConfig
from rayconf.search import MUTABLE
from tests.algos.conftest import BASE, small_run

Build = Callable[..., PairPPO]
Tensors = dict[str, Tensor]
MATRICES = {f"{branch}.{layer}.weight" for branch in ("pi", "vf") for layer in (0, 2, 4)}
FIRST_LAYERS = {f"{branch}.0.{kind}" for branch in ("pi", "vf") for kind in ("weight", "bias")}
ENCODERS = {
    f"{name}.{layer}.{kind}"
    for name in ("encoder", "critic_encoder")
    for layer in ("inputs", "state")
    for kind in ("weight", "bias")
}


@dataclass
class Update:
    """What the first update after an exploit did."""

    run: RunConfig
    sd: float = 0.0
    batches: list[Tensors] = field(default_factory=list)
    """Columns of each minibatch."""
    outputs: list[Tensor] = field(default_factory=list)
    """Distribution parameters of each minibatch."""
    losses: list[Tensor] = field(default_factory=list)
    policy_losses: list[Tensor] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Norm of each gradient as the optimizers took it."""
    states: list[Tensors] = field(default_factory=list)
    """Weights and averages before and after each gradient step."""
    hidden: dict[str, list[Tensor]] = field(default_factory=dict)
    """What entered the layers after the hidden ones, per minibatch."""
    fills: list[tuple[Tensor, ledger.Fill]] = field(default_factory=list)
    """Targets and fills of each bar of the rollout."""
    tail: float = 0.0
    gae: tuple[Tensor, ...] = ()
    """Reward, value, value after, ruined and cut off, all [T, N]."""
    courses: list[tuple[Course, Tensor]] = field(default_factory=list)
    """Windows and objective of each step of the direct arm."""

    @property
    def sizes(self) -> list[int]:
        return [len(batch[Columns.OBS]) for batch in self.batches]

    def moved(self, name: str) -> Tensor:
        """How the first gradient step moved a parameter."""
        return self.states[1][f"module/{name}"] - self.states[0][f"module/{name}"]

    @property
    def names(self) -> list[str]:
        return [name.removeprefix("module/") for name in self.states[0] if name.startswith("module/")]

    def first_epoch(self, column: str) -> Tensor:
        """A column of the whole batch, in ascending order."""
        parts = -(-512 // self.sizes[0])
        return torch.cat([batch[column] for batch in self.batches[:parts]]).sort().values


def first_update(build: Build, run: RunConfig, state: Tensors) -> Update:
    """Load a donor's state under a run, and train one update."""
    config = PairPPOConfig.from_run(run, run.data.pairs[0])
    algorithm = build(config=config)
    algorithm.load_boundary_state(state)
    algorithm.reseed(11)
    seen = Update(run, market_for(config.env_config).equal_weight_sd, tail=float(state["tail_quantile"]))
    learner = algorithm.learner_group._learner
    net = learner.module[DEFAULT_MODULE_ID].unwrapped()
    loss, apply = learner.compute_loss_for_module, learner.apply_gradients

    def loss_seen(*, batch: Any, fwd_out: Any, **kwargs: Any) -> Tensor:
        seen.batches.append({name: batch[name].clone() for name in batch})
        seen.outputs.append(fwd_out[Columns.ACTION_DIST_INPUTS].detach().clone())
        seen.losses.append(loss(batch=batch, fwd_out=fwd_out, **kwargs))
        seen.policy_losses.append(learner._losses.rows[-1][0])
        return seen.losses[-1]

    def apply_seen(gradients: Any) -> None:
        seen.norms.append(float(torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()))
        if not seen.states:
            seen.states.append({name: tensor.clone() for name, tensor in learner.training_tensors().items()})
        apply(gradients)
        seen.states.append({name: tensor.clone() for name, tensor in learner.training_tensors().items()})

    def gae_seen(reward: Tensor, value: Tensor, after: Tensor, ruined: Tensor, cut: Tensor, *rates: float) -> Tensor:
        seen.gae = tuple(tensor.clone() for tensor in (reward, value, after, ruined, cut))
        return gae(reward, value, after, ruined, cut, *rates)

    def objective_seen(course: Course, *rest: Any) -> Tensor:
        value = objective(course, *rest)
        seen.courses.append((course, value.detach()))
        return value

    def step_seen(account: Any, target: Tensor, *rest: Any) -> Any:
        after, fill = step(account, target, *rest)
        seen.fills.append((target.clone(), fill))
        return after, fill

    step = ledger.step
    learner.compute_loss_for_module, learner.apply_gradients = loss_seen, apply_seen
    if run.network.encoder == "mlp":
        for name in ("pi.2", "pi.4", "vf.2", "vf.4"):
            into = seen.hidden[name] = []
            layer = net.get_submodule(name)
            layer.register_forward_pre_hook(lambda _, inputs, into=into: into.append(inputs[0].detach().clone()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("algos.env_runner.gae", gae_seen)
        patch.setattr(ledger, "step", step_seen)
        patch.setattr("algos.direct.objective", objective_seen)
        algorithm.train()
    return seen


# --- the proofs: (after an exploit with the new value, with the old value kept, the new value) ----------------------


def slope(new: Tensor, old: Tensor) -> float:
    return float((new * old).sum() / (old * old).sum())


def steps_differ_by(new: Update, old: Update, factor: float, names: set[str]) -> None:
    """The first gradient step moves the named parameters ``factor`` times as far, and the others as far as before."""
    assert names <= set(new.names)
    for name in new.names:
        expected = factor if name in names else 1.0
        assert slope(new.moved(name), old.moved(name)) == pytest.approx(expected, rel=2e-3), name


def learning_rate(new: Update, old: Update, value: float) -> None:
    steps_differ_by(new, old, value / 0.003, set(new.names))


def weight_decay(new: Update, old: Update, value: float) -> None:
    for name in new.names:
        extra, before = new.moved(name) - old.moved(name), old.states[0][f"module/{name}"]
        if name in MATRICES:
            assert slope(extra, before) == pytest.approx(-0.003 * (value - 1e-4), rel=1e-2), name
        else:
            assert torch.equal(new.moved(name), old.moved(name)), name


def critic_decay_factor(new: Update, old: Update, value: float) -> None:
    for name in new.names:
        if name in MATRICES and name.startswith("vf."):
            extra, before = new.moved(name) - old.moved(name), old.states[0][f"module/{name}"]
            assert slope(extra, before) == pytest.approx(-0.003 * 10 * (value - 1), rel=1e-2), name
        else:
            assert torch.equal(new.moved(name), old.moved(name)), name


def pull(new: Update, old: Update, value: float) -> None:
    """The actor goes a share of the way back that it had come, after the same gradient step."""
    share = 0.003 * value
    for name in new.names:
        after, start = old.states[1][f"module/{name}"], old.states[1].get(f"anchor/{name}")
        assert (start is not None) == name.startswith("pi."), name
        expected = after if start is None else after + share * (start - after)
        torch.testing.assert_close(new.states[1][f"module/{name}"], expected, rtol=0, atol=1e-7, msg=name)


def kl_stop(new: Update, old: Update, value: float) -> None:
    assert old.sizes == [128] * 8, "two epochs"
    assert new.sizes == [128] * 4, "the first epoch moved the policy by more"


def encoder_lr_factor(new: Update, old: Update, value: float) -> None:
    steps_differ_by(new, old, value, FIRST_LAYERS if new.run.network.encoder == "mlp" else ENCODERS)


def muon_ratio(new: Update, old: Update, value: float) -> None:
    steps_differ_by(new, old, value, {"pi.2.weight", "vf.2.weight"})


def max_grad_norm(new: Update, old: Update, value: float) -> None:
    assert new.norms[0] == pytest.approx(value, rel=1e-3)


def ema_half_life(new: Update, old: Update, value: float) -> None:
    decay = 0.5 ** (1 / (value * 8))  # a generation is one update of 8 gradient steps here
    for name in new.names:
        before, after = new.states[0][f"ema/{name}"], new.states[1][f"ema/{name}"]
        expected = decay * before + (1 - decay) * new.states[1][f"module/{name}"]
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)


def warmup_fraction(new: Update, old: Update, value: float) -> None:
    steps_differ_by(new, old, 9 / round(value * 32), set(new.names))  # the ninth step of 4 x 8, warm without warm-up


def floor_fraction(new: Update, old: Update, value: float) -> None:
    fall = 0.5 * (1 + math.cos(math.pi * (8 - 1) / (32 - 1)))  # after one step of warm-up and seven of cosine
    steps_differ_by(new, old, (value + (1 - value) * fall) / (0.1 + 0.9 * fall), set(new.names))


def entropy_coeff(new: Update, old: Update, value: float) -> None:
    bonus = value * SquashedGaussian.from_logits(old.outputs[0]).entropy().mean()
    torch.testing.assert_close(new.losses[0], old.losses[0] - bonus, rtol=1e-4, atol=1e-6)
    assert not torch.equal(new.moved("log_std"), old.moved("log_std"))


def clip(new: Update, old: Update, value: float) -> None:
    """From the second minibatch on; at the first one nothing has moved yet that could be clipped."""
    for batch, output, found in zip(new.batches, new.outputs, new.policy_losses, strict=True):
        gain = batch[Postprocessing.ADVANTAGES]
        change = SquashedGaussian.from_logits(output).logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
        ratio = change.exp()
        bounded = ratio.clamp(1 - value, 1 + value)
        expected = -torch.where(gain * bounded < gain * ratio, gain * bounded, gain * ratio).mean()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def advantages(seen: Update, gamma: float, lam: float) -> Tensor:
    reward, value, after, ruined, cut = seen.gae
    advantage, following = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        error = reward[t] + gamma * after[t] * ~ruined[t] - value[t]
        advantage[t] = following = error + gamma * lam * following * ~(ruined[t] | cut[t])
    return advantage


def gamma(new: Update, old: Update, value: float) -> None:
    expected = (advantages(new, value, 0.9) + new.gae[1]).flatten().sort().values
    torch.testing.assert_close(new.first_epoch(Postprocessing.VALUE_TARGETS), expected, rtol=1e-4, atol=1e-4)


def gae_lambda(new: Update, old: Update, value: float) -> None:
    gain = advantages(new, 0.95, value).flatten()
    expected = ((gain - gain.mean()) / gain.std()).sort().values
    torch.testing.assert_close(new.first_epoch(Postprocessing.ADVANTAGES), expected, rtol=1e-4, atol=1e-4)


def epochs(new: Update, old: Update, value: float) -> None:
    assert new.sizes == [128] * 4 * int(value)
    assert len(new.states) - 1 == 4 * value
    assert type(new.run.ppo.epochs) is int


def minibatch_size(new: Update, old: Update, value: float) -> None:
    assert new.sizes == [value] * (2 * 512 // int(value))
    assert len(new.states) - 1 == len(new.sizes)
    assert type(new.run.ppo.minibatch_size) is int


def dropout(new: Update, old: Update, value: float) -> None:
    for name, (first, second, *_) in new.hidden.items():
        share, spread = float((first == 0).float().mean()), math.sqrt(value * (1 - value) / first.numel())
        assert share == pytest.approx(value, abs=5 * spread), name
        assert not torch.equal(first == 0, second == 0), "a mask is drawn anew"
    whole, thinned = old.hidden["pi.2"][0], new.hidden["pi.2"][0]
    torch.testing.assert_close(thinned, (whole / (1 - value)).where(thinned != 0, 0 * whole))
    for a, b in zip(new.gae, old.gae, strict=True):
        assert torch.equal(a, b), "a rollout and its values know no dropout"


def shaped(risk: float = 1.0, turnover: float = 0.5, cvar: float = 0.003) -> Callable[[Update, Update, float], None]:
    def check(new: Update, old: Update, value: float) -> None:
        weights = [value if math.isnan(weight) else weight for weight in (risk, turnover, cvar)]
        for reward, (_, fill) in zip(new.gae[0], new.fills, strict=True):
            growth, traded = fill.log_growth, fill.turnover
            terms = 0.5 * weights[0] * growth**2 + 1e-4 * weights[1] * traded**2
            tail = weights[2] * (-growth - new.tail).clamp(min=0) / 0.05
            torch.testing.assert_close(reward, (growth - terms - tail) / new.sd, rtol=1e-4, atol=1e-5)

    return check


def train_cost_bps(new: Update, old: Update, value: float) -> None:
    for _, fill in new.fills:
        torch.testing.assert_close(fill.cost, value * 1e-4 * fill.traded)
    assert new.fills[0][1].traded.min() > 0


def leverage_cap(new: Update, old: Update, value: float) -> None:
    latents = torch.cat([batch[Columns.ACTIONS] for batch in new.batches[:4]])
    asked = torch.cat([target for target, _ in new.fills])
    wanted = value * torch.tanh(latents)
    wanted = wanted / (wanted.abs().sum(1, keepdim=True) / value).clamp(min=1)
    for leg in (0, 1):  # minibatches are in another order
        torch.testing.assert_close(asked[:, leg].sort().values, wanted[:, leg].sort().values, rtol=1e-5, atol=1e-6)
    assert asked.abs().sum(1).max() == pytest.approx(value), "of actions beyond the limit there are some"


def ascended(turnover: float = 0.5, worst: float = 0.3) -> Callable[[Update, Update, float], None]:
    def check(new: Update, old: Update, value: float) -> None:
        penalty, weight = (value if math.isnan(number) else number for number in (turnover, worst))
        for course, found in new.courses:
            paid = (course.net_return - 1e-4 * penalty * course.turnover**2)[3:].detach()
            floor = 0.1 * new.sd
            t = 3 * paid.mean(0) / (paid.var(0, correction=0) + floor**2).sqrt()
            pooled = paid.mean() / (paid.var(correction=0) + floor**2).sqrt()
            smooth = -(-5 * t).exp().mean().log() / 5
            torch.testing.assert_close(found, pooled + weight * smooth / 3, rtol=1e-4, atol=1e-6)

    return check


def reach(new: Update, old: Update, value: float) -> None:
    latents = torch.cat([batch[Columns.ACTIONS] for batch in new.batches[:4]])
    wanted, asked = 1.5 * value * torch.tanh(latents), torch.cat([target for target, _ in new.fills])
    for leg in (0, 1):  # minibatches are in another order; the prior is flat
        torch.testing.assert_close(asked[:, leg].sort().values, wanted[:, leg].sort().values, rtol=1e-5, atol=1e-6)


def first_target(update: Update) -> Tensor:
    """[N, 2] targets of accounts that hold nothing yet."""
    return update.fills[0][0]


def adjustment(new: Update, old: Update, value: float) -> None:
    torch.testing.assert_close(first_target(new), value * first_target(old))


def no_trade_band(new: Update, old: Update, value: float) -> None:
    whole = first_target(old) + torch.sign(first_target(old)) * 0.001  # the old band
    torch.testing.assert_close(first_target(new), torch.sign(whole) * (whole.abs() - value).clamp(min=0))
    assert bool((first_target(new) == 0).any()), "some are within the band"


@dataclass(frozen=True)
class Case:
    """A range, the new value, and the proof that it is in force."""

    low: float
    high: float
    value: float
    proof: Callable[[Update, Update, float], None]
    settings: tuple[str, ...] = ()
    scale: str = "linear"


PLANNED = "pbt.iterations=4"
MUON = ("optimizer.kind=muon_mix",)
GRU = ("network.encoder=gru", "network.encoder_window=5", "network.encoder_width=8", *MUON)
RATE = ("optimizer.schedule=constant",)
DIRECT = (
    "algo=direct",
    "direct.windows=16",
    "direct.window_bars=12",
    "direct.burn_bars=3",
    "direct.worst_window=0.3",
    "optimizer.learning_rate=0.03",  # after one update the network trades
)
PROOFS: dict[str, list[Case]] = {
    "optimizer.learning_rate": [Case(1e-5, 1e-2, 0.0007, learning_rate, scale="log")],
    "optimizer.weight_decay": [Case(0, 20, 10.0, weight_decay, RATE)],
    "optimizer.critic_decay_factor": [Case(0, 2, 0.0, critic_decay_factor, (*RATE, "optimizer.weight_decay=10"))],
    "optimizer.pull": [
        Case(0, 100, 80.0, pull, (*RATE, BASE)),
        Case(0, 100, 80.0, pull, (*DIRECT, *RATE, "optimizer.learning_rate=0.003", BASE)),
    ],
    "optimizer.encoder_lr_factor": [
        Case(0.1, 10, 0.25, encoder_lr_factor),
        Case(0.1, 10, 4.0, encoder_lr_factor, GRU),
    ],
    "optimizer.muon_ratio": [Case(0.1, 10, 3.0, muon_ratio, MUON)],
    "optimizer.max_grad_norm": [Case(0.001, 1, 0.01, max_grad_norm)],
    "optimizer.ema_half_life": [Case(0, 4, 2.0, ema_half_life)],
    "optimizer.warmup_fraction": [Case(0, 1, 0.9, warmup_fraction, (PLANNED, *RATE))],
    "optimizer.floor_fraction": [Case(0, 1, 0.8, floor_fraction, (PLANNED,))],
    "ppo.entropy_coeff": [Case(0, 0.1, 0.05, entropy_coeff)],
    "ppo.clip": [Case(0.001, 0.4, 0.002, clip)],
    "ppo.kl_stop": [Case(0, 1, 1e-9, kl_stop)],
    "ppo.gamma": [Case(0.5, 0.99, 0.6, gamma, scale="logit")],
    "ppo.gae_lambda": [Case(0.5, 0.99, 0.6, gae_lambda, scale="logit")],
    "ppo.epochs": [Case(1, 6, 5, epochs, scale="integer")],
    "ppo.minibatch_size": [Case(64, 256, 64, minibatch_size, scale="categorical")],
    "direct.worst_window": [Case(0, 1, 0.8, ascended(worst=math.nan), DIRECT)],
    "network.dropout": [Case(0, 0.5, 0.3, dropout)],
    "env.risk_penalty": [Case(0.3, 100, 90.0, shaped(risk=math.nan))],
    "env.turnover_penalty": [
        Case(0.05, 20, 15.0, shaped(turnover=math.nan)),
        Case(0.05, 500, 400.0, ascended(turnover=math.nan), DIRECT),
    ],
    "env.cvar_weight": [Case(0.001, 0.5, 0.3, shaped(cvar=math.nan))],
    "env.train_cost_bps": [Case(2, 20, 15.0, train_cost_bps), Case(2, 20, 15.0, train_cost_bps, DIRECT)],
    "env.leverage_cap": [Case(0.1, 1.5, 0.4, leverage_cap)],
    "env.reach": [Case(0.05, 0.5, 0.4, reach, ("env.mapping=residual", "features.prior=flat"))],
    "env.adjustment": [Case(0.1, 1.0, 0.3, adjustment)],
    "env.no_trade_band": [Case(0.001, 0.5, 0.4, no_trade_band, ("env.no_trade_band=0.001",))],
}


def cases() -> Iterator[Any]:
    for path in MUTABLE:
        for number in range(len(PROOFS.get(path, [None]))):
            yield pytest.param(path, number, id=f"{path}-{number}")


@pytest.mark.parametrize(("path", "number"), cases())
def test_a_mutated_value_is_in_force_at_the_first_update_after_an_exploit(build: Build, path: str, number: int) -> None:
    assert path in PROOFS, "a field that may be mutated needs a proof"
    case = PROOFS[path][number]
    ends = {"choices": [64, 128, 256]} if case.scale == "categorical" else {"low": case.low, "high": case.high}
    run = small_run(*case.settings, f"search={ {'x': {'path': path, 'scale': case.scale, **ends}} }")
    donor = build(config=PairPPOConfig.from_run(run, run.data.pairs[0]))
    donor.train()
    state = donor.boundary_state()

    kept = first_update(build, run, state)
    new = first_update(build, run.with_values({"x": float(case.value)}), state)
    case.proof(new, kept, case.value)
    with pytest.raises(AssertionError):  # planted: the value is written down and ignored
        case.proof(kept, kept, case.value)
