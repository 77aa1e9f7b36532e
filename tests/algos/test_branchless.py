"""What runs on an accelerator, run on the CPU: the same bits as the branches there, and nothing the host waits for."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._python_dispatch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN, NUM_EPISODES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from algos import learner as learner_module
from algos.config import PairPPOConfig
from algos.env_runner import REWARD_MEAN, BatchedEnvRunner
from algos.minibatches import SlabOrder
from algos.optimizers import WeightAverage, build_optimizers, optimizer_tensors, step_unless
from rayconf.errors import UserError
from tests.algos.conftest import LEASH, small_config, small_run
from tests.algos.test_learner import make_learner, one_step

WAITS = {"_local_scalar_dense", "nonzero", "unique_consecutive", "masked_select", "equal", "repeat_interleave"}
DRAWS = {"randint", "randn"}
ENCODERS = ("factored", "conv", "gru", "transformer")
LOGGED = (REWARD_MEAN, EPISODE_RETURN_MEAN, EPISODE_LEN_MEAN, NUM_EPISODES)
RUINS = "costs.ruin_fraction=0.97"


class Waits(TorchDispatchMode):
    """Counts operations whose result decides a number or a shape on the host, and draws from the CPU's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS | DRAWS or by_mask:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def make_runner(config: PairPPOConfig, branchless: bool) -> BatchedEnvRunner:
    runner = BatchedEnvRunner(config=config)
    assert not runner.branchless  # the CPU's own way
    runner.branchless = branchless
    runner.make_env()
    return runner


def rollouts(config: PairPPOConfig, branchless: bool, count: int) -> tuple[list[dict[str, Tensor]], list[Any]]:
    runner = make_runner(config, branchless)
    columns, logged = [], []
    for _ in range(count):
        columns.append(dict(runner.sample()[0][DEFAULT_MODULE_ID]))
        metrics = runner.get_metrics()
        logged.append([metrics[name].peek() for name in LOGGED])
    assert runner.tail_quantile is not None
    return columns, [*logged, runner.tail_quantile]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (RUINS, "env.risk_measure=drawdown", "env.lag=2"),
        (RUINS, "ppo.accounts_per_start=4"),
        ("env.episode_bars=2",),  # some account ends at every step
    ],
    ids=str,
)
def test_rollouts_equal_to_the_bit(ray_session: None, settings: tuple[str, ...]) -> None:
    """Enough steps that the starts drawn ahead run out."""
    config = small_config("ppo.rollout_steps=70", "ppo.minibatch_size=512", *settings)
    (expected, logged), (found, logged_too) = (rollouts(config, branchless, 8) for branchless in (False, True))
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert logged == logged_too


def test_rollouts_of_an_encoder_equal(ray_session: None) -> None:
    """Bars are evaluated in other company, so that last bits differ; episodes do not."""
    config = small_config("network.encoder=conv", "network.encoder_width=8", "network.encoder_window=9", RUINS)
    (expected, _), (found, _) = (rollouts(config, branchless, 3) for branchless in (False, True))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["obs"][:, 0], b["obs"][:, 0])
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)


def learner_for(config: PairPPOConfig, branchless: bool) -> Any:
    learner = make_learner(config)
    assert not learner.branchless
    learner.branchless = branchless
    return learner


def updated(config: PairPPOConfig, branchless: bool, batch: MultiAgentBatch) -> tuple[dict[str, Tensor], Any]:
    learner = learner_for(config, branchless)
    for _ in range(2):
        results = learner.update(**{**one_step(config, batch), "num_epochs": 2, "minibatch_size": 128})
    report = results[DEFAULT_MODULE_ID]
    return learner.export_training_state(), {name: float(report[name].peek()) for name in sorted(report)}


@pytest.mark.parametrize("kind", ["adamw", "muon_mix"])
@pytest.mark.parametrize("encoder", ["mlp", *ENCODERS])
def test_updates_equal_to_the_bit(ray_session: None, kind: str, encoder: str) -> None:
    config = small_config(
        f"network.encoder={encoder}",
        "network.encoder_width=8",
        "network.encoder_window=9",
        *LEASH,
        optimizer_kind=kind,
        ema_half_life=4.0,
        grad_clip=0.05,
        lr_schedule_kind="cosine",
        total_updates=3,
    )
    batch = BatchedEnvRunner(config=config).sample()[0]
    (state, report), (state_too, report_too) = (updated(config, branchless, batch) for branchless in (False, True))
    assert [name for name in state if not torch.equal(state[name], state_too[name])] == []
    assert report == report_too
    assert state["schedule/steps"] == 16
    assert report["grad_norm"] > 0.05


@pytest.mark.parametrize("kind", ["adamw", "muon_mix"])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_moves_nothing(ray_session: None, kind: str, spoilt: float) -> None:
    """Also after steps that did: moments, averaged weights, schedule; nor does a pull."""
    config = small_config(*LEASH, optimizer_kind=kind, ema_half_life=4.0)
    batch = BatchedEnvRunner(config=config).sample()[0]
    learner = learner_for(config, True)
    learner.update(**{**one_step(config, batch), "num_epochs": 2, "minibatch_size": 128})
    state = learner.export_training_state()
    batch[DEFAULT_MODULE_ID][Postprocessing.ADVANTAGES][3] = spoilt
    learner.update(**one_step(config, batch))
    assert learner._skipped == 1
    after = learner.export_training_state()
    assert [name for name in state if not torch.equal(after[name], state[name])] == []


def test_a_bad_minibatch_among_good_ones_is_left_out_alike(ray_session: None) -> None:
    """With a constant rate, on which the schedule's running ahead has no bearing."""
    config = small_config(ema_half_life=4.0)
    batch = BatchedEnvRunner(config=config).sample()[0]
    batch[DEFAULT_MODULE_ID][Postprocessing.ADVANTAGES][3] = float("nan")
    (state, report), (state_too, report_too) = (updated(config, branchless, batch) for branchless in (False, True))
    assert [name for name in state if not torch.equal(state[name], state_too[name])] == []
    assert state["schedule/steps"] == 2 * 2 * 3
    assert report["skipped_steps"] == report_too["skipped_steps"] == 2
    assert report["grad_norm"] == report_too["grad_norm"]


def test_averages_mixed_by_a_skip_of_zero_are_the_plain_ones() -> None:
    weights = [torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3)]
    plain, guarded = WeightAverage(weights, 5.0), WeightAverage(weights, 5.0)
    for step in range(4):
        weights[0].add_(0.3)
        plain.update()
        guarded.update_unless(torch.tensor(0.0))
        guarded.count(1)
        before = [average.clone() for average in guarded.average]
        guarded.update_unless(torch.tensor(1.0))
        assert all(map(torch.equal, guarded.average, before)), step
    assert all(map(torch.equal, plain.corrected(), guarded.corrected()))


@pytest.mark.parametrize("kind", ["adamw", "muon_mix"])
def test_a_guarded_step_is_the_plain_step_or_none(kind: str) -> None:
    def stepped(skip: float | None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        net = torch.nn.ModuleDict({"pi": torch.nn.Sequential(*(torch.nn.Linear(5, 5) for _ in range(4)))})
        for p in net.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator))
        optimizers = build_optimizers(net, kind, 1e-2, 1.0, 0.1)
        for turn in range(3):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator) * (float("nan") if skip and turn == 2 else 1)
            for optimizer in optimizers.values():
                if turn < 2 or skip is None:
                    optimizer.step()
                else:
                    step_unless(optimizer, torch.tensor(skip))
            if turn == 1 and skip:
                before = [t.detach().clone() for t in (*net.parameters(), *optimizer_tensors(optimizers, net).values())]
        after = [t.detach().clone() for t in (*net.parameters(), *optimizer_tensors(optimizers, net).values())]
        if skip:
            assert all(map(torch.equal, before, after))
        return after

    assert all(map(torch.equal, stepped(None), stepped(0.0)))
    stepped(1.0)


def waits_of_rollout(steps: int, branchless: bool) -> Counter[str]:
    config = small_config(f"ppo.rollout_steps={steps}", "ppo.minibatch_size=128", RUINS, "env.risk_measure=drawdown")
    runner = make_runner(config, branchless)
    runner.sample()
    with Waits() as waits:
        runner.sample()
    return waits.seen


def test_no_step_of_a_rollout_waits_for_the_device(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the steps, the same number of times that the host asks; the ledger asks by device and is told so here."""
    from envs import ledger

    monkeypatch.setattr(ledger, "bool", lambda low: True, raising=False)
    assert waits_of_rollout(16, True) == waits_of_rollout(32, True)
    assert sum(waits_of_rollout(16, True).values()) < 12
    assert waits_of_rollout(32, False).total() > waits_of_rollout(16, False).total() + 16


def waits_of_update(epochs: int, branchless: bool, config: PairPPOConfig, batch: MultiAgentBatch) -> Counter[str]:
    learner = learner_for(config, branchless)
    with Waits() as waits:
        learner.update(**{**one_step(config, batch), "num_epochs": epochs, "minibatch_size": 128})
    return waits.seen


@pytest.mark.parametrize(
    ("kind", "encoder"), [("adamw", "mlp"), ("muon_mix", "mlp"), *(("adamw", e) for e in ENCODERS)]
)
def test_no_gradient_step_waits_for_the_device(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, kind: str, encoder: str
) -> None:
    """Three epochs, the same number of times as in one; what the host plans about bars it plans on its own tensors."""
    config = small_config(f"network.encoder={encoder}", "network.encoder_width=8", optimizer_kind=kind)
    batch = BatchedEnvRunner(config=config).sample()[0]
    assert waits_of_update(3, False, config, batch).total() >= waits_of_update(1, False, config, batch).total() + 8

    def unseen(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                return work(*args)

        return run

    monkeypatch.setattr(learner_module, "plan_bars", unseen(learner_module.plan_bars))
    monkeypatch.setattr(SlabOrder, "draw", unseen(SlabOrder.draw))
    assert waits_of_update(1, True, config, batch) == waits_of_update(3, True, config, batch)


def test_a_share_of_a_gpu_puts_learner_and_runner_there() -> None:
    run = small_run("resources.gpus_per_member=0.25")
    config = PairPPOConfig.from_run(run, "SYNA/SYNB")
    config.validate()
    assert (config.runner_device, config.num_gpus_per_learner, config.num_learners) == ("cuda", 0.25, 0)
    assert small_config().runner_device == "cpu"
    with pytest.raises(UserError, match="num_gpus_per_env_runner"):
        config.copy(copy_frozen=False).env_runners(num_env_runners=1).validate()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"runner_device: .* finds no CUDA device"):
            BatchedEnvRunner(config=config)
