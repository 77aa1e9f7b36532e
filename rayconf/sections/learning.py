"""The environment, the network and how it learns."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayconf.sections.section import Count, Fraction, NonNegative, Positive, Section

ENCODERS = ("factored", "conv", "gru", "transformer")
"""Networks that evaluate what reads only the market once per bar."""


class EnvConfig(Section):
    """The environment: timing, action mapping, episodes and the shaped training reward."""

    lag: Annotated[int, Field(ge=1, le=20)] = 1
    """Bars between the close a decision sees and its fill; 0 would be look-ahead."""
    mapping: Literal["direct", "neutral", "residual"] = "direct"
    """``direct``: one weight per leg; ``neutral``: one dollar-neutral tilt; ``residual``: a correction of the weights
    that ``features.prior`` gives, zero at the start, so that an untrained policy is the prior."""
    reach: Annotated[float, Field(gt=0, le=2)] = 0.25
    """Largest correction of a leg by ``residual``, as a multiple of the gross limit."""
    adjustment: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the way from the held to the wanted weights that one decision goes (partial adjustment)."""
    no_trade_band: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Half-width of the no-trade band as a fraction of equity: a leg nearer than this to its wanted weight is left
    alone, beyond it is traded to the band's edge."""
    episode_bars: Annotated[int, Field(ge=2)] = 256
    """Length of a training episode in bars; its end is a truncation."""
    risk_measure: Literal["variance", "downside", "drawdown"] = "variance"
    """What ``risk_penalty`` multiplies: squared log-growth, squared losses, or new maximum drawdown."""
    risk_penalty: NonNegative | None = None
    """Weight of the risk term; null: 1, or 0.05 for ``drawdown``."""
    turnover_penalty: NonNegative = 0.5
    """Extra cost in basis points at a squared turnover of 1."""
    train_cost_bps: NonNegative | None = None
    """Trading cost per side in training, never below the real cost; null: the real cost."""
    cvar_weight: NonNegative = 0.003
    """Weight of the tail term (95 % CVaR of the per-bar loss)."""
    leverage_cap: Positive | None = None
    """Gross limit of the policy itself, in training and wherever it trades: actions scale to it, and targets beyond it
    shrink to it. Never above ``costs.leverage``, which stays the ledger's limit; null: that limit alone."""

    @property
    def default_risk_penalty(self) -> float:
        """The default of ``risk_penalty`` for this risk measure."""
        return 0.05 if self.risk_measure == "drawdown" else 1.0


class NetworkConfig(Section):
    """Actor and critic: separate networks of the same shape.

    With an encoder everything that reads only the market is evaluated once per bar, however many accounts look at it:
    the encoder and all hidden layers up to the sums of the last, which the account joins.
    """

    hidden: tuple[Count, ...] = (64, 64)
    """Widths of the hidden layers; with an encoder the layers after it, and the account enters at the last one."""
    activation: Literal["tanh", "silu"] = "tanh"
    """Nonlinearity of the hidden layers, and of ``conv`` and ``transformer``."""
    layer_norm: bool = False
    """Norm the sums of each hidden layer to mean 0 and variance 1, with learned scale and shift, before the
    nonlinearity. Needs encoder ``mlp``."""
    legs: Literal["joint", "shared"] = "joint"
    """``joint``: one network reads both legs and has an action for each; ``shared``: one is asked about each leg as if
    it were the first, so that swapping the legs of an observation swaps the actions and leaves the value alone. The
    hedge ratio, whose image is unknown, stays in place. Needs encoder ``mlp``."""
    initial_log_std: float = -0.5
    """Initial log standard deviation of the action before squashing."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden units of actor and critic that are left out, drawn anew for each gradient step, and in
    gradient steps alone: rollouts, advantages and evaluation see the whole network. With an encoder, units of layers
    that are evaluated once per bar are left out for all samples of the bar."""
    encoder: Literal["mlp", "factored", "conv", "gru", "transformer"] = "mlp"
    """``mlp``: features and account enter together, per sample. Per bar: ``factored`` reads the bar's own features;
    ``conv``, ``gru`` and ``transformer`` read the last ``encoder_window`` bars."""
    encoder_window: Annotated[int, Field(ge=2, le=512)] = 60
    """Bars that ``conv``, ``gru`` and ``transformer`` read, the present one included; zeros before the first bar."""
    encoder_width: Count = 32
    """Width of ``conv``, ``gru`` and ``transformer`` and of their embedding."""
    encoder_layers: Annotated[int, Field(ge=1, le=16)] = 2
    """Layers of ``transformer``, which share the window among them; ``conv`` takes as many as cover the window."""
    encoder_heads: Count = 4
    """Attention heads of ``transformer``; must divide ``encoder_width``."""
    encoder_sharing: Literal["separate", "shared", "detached"] = "separate"
    """The critic's encoder: its own, or the actor's, trained by both (``shared``) or by the actor alone."""

    @model_validator(mode="after")
    def _shapes(self) -> "NetworkConfig":
        if self.dropout and not self.hidden:
            raise ValueError(f"dropout {self.dropout} needs hidden with at least one layer")
        if self.layer_norm and (not self.hidden or min(self.hidden) < 2):
            raise ValueError(f"layer_norm needs hidden layers of two or more units, not {list(self.hidden)}")
        if self.encoder == "mlp":
            return self
        if self.layer_norm:
            raise ValueError(f"layer_norm needs encoder mlp; {self.encoder} has none between market and account")
        if self.legs == "shared":
            raise ValueError(f"legs shared needs encoder mlp; {self.encoder} reads a bar once for both legs")
        if not self.hidden:
            raise ValueError(
                f"hidden must name at least one layer with encoder {self.encoder}: the account enters there"
            )
        if self.encoder == "transformer":
            if self.encoder_width % self.encoder_heads:
                raise ValueError(f"encoder_heads {self.encoder_heads} must divide encoder_width {self.encoder_width}")
            if self.encoder_layers >= self.encoder_window:
                raise ValueError(
                    f"encoder_layers {self.encoder_layers} must be below encoder_window {self.encoder_window}"
                )
        return self


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017) with generalised advantage estimation."""

    num_envs: Count = 512
    """Accounts stepped side by side."""
    rollout_steps: Count = 64
    """Bars per account and PPO update; num_envs x rollout_steps samples are one batch."""
    epochs: Count = 4
    """Passes over the batch per update."""
    minibatch_size: Count = 8192
    """Samples per gradient step."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Discount per bar."""
    gae_lambda: Fraction = 0.9
    """Lambda of generalised advantage estimation."""
    clip: Positive = 0.2
    """Clip range of the probability ratio."""
    entropy_coeff: NonNegative = 0.0
    """Weight of the entropy bonus."""
    kl_stop: NonNegative = 0.0
    """An update ends with the epoch whose mean KL divergence from the policy that acted exceeds this; 0: never."""
    value_coeff: NonNegative = 0.5
    """Weight of the value loss."""
    accounts_per_start: Count = 1
    """Accounts that begin their episodes at the same bars and so share market rows; must divide ``num_envs``."""
    slab_bars: Count | None = None
    """With an encoder, minibatches hold all samples of randomly drawn slabs of this many bars, so that samples share
    bars; null: single bars for ``factored``, else 64. The network ``mlp`` draws single samples and ignores it."""

    @model_validator(mode="after")
    def _fits(self) -> "PPOConfig":
        if self.minibatch_size > self.num_envs * self.rollout_steps:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} exceeds the batch num_envs x rollout_steps = "
                f"{self.num_envs * self.rollout_steps}"
            )
        if self.num_envs % self.accounts_per_start:
            raise ValueError(f"accounts_per_start {self.accounts_per_start} must divide num_envs {self.num_envs}")
        return self


class DirectConfig(Section):
    """Ascent of the exact gradient of what the accounts earn (Moody and Saffell 2001; Lim, Zohren and Roberts 2019).

    The market does not answer and the ledger is differentiable, so the deterministic policy is run through windows of
    the training span and its objective differentiated back through the accounts. An update is ``steps`` gradient steps,
    each on windows drawn anew. ``env.episode_bars`` and the section ``ppo`` play no part.

    Without sampled actions little keeps it from fitting the noise of the span: ``network.dropout``, whose masks a
    window keeps, matters more than under PPO. Within a no-trade band there is no gradient, so ``env.no_trade_band``
    must be narrower than the moves of an untrained policy.
    """

    objective: Literal["sharpe", "reward"] = "sharpe"
    """``sharpe``: Sharpe ratio of net returns per bar, pooled over all windows, each in units of its market's noise,
    under the training costs and less 1e-4 x ``env.turnover_penalty`` x squared turnover; ``reward``: mean of the shaped
    reward that PPO sees."""
    windows: Annotated[int, Field(ge=2)] = 128
    """Windows per gradient step, drawn uniformly; each is an account that starts in cash."""
    window_bars: Annotated[int, Field(ge=2)] = 84
    """Bars of a window."""
    burn_bars: Annotated[int, Field(ge=0)] = 21
    """First bars of a window that do not count: the account only moves to where it wants to be."""
    steps: Count = 8
    """Gradient steps per update."""
    floor: Positive = 0.1
    """Standard deviation added in quadrature under the Sharpe ratio, as a share of equal weight's on the training span,
    so that cash is not a singularity."""
    worst_window: NonNegative = 0.0
    """Weight of the worst windows beside the pooled Sharpe ratio: of the smooth minimum over the windows' own."""

    @model_validator(mode="after")
    def _acts(self) -> "DirectConfig":
        if self.burn_bars > self.window_bars - 2:
            raise ValueError(f"burn_bars {self.burn_bars} must leave two bars of window_bars {self.window_bars}")
        if self.worst_window and self.objective != "sharpe":
            raise ValueError(f"worst_window {self.worst_window} needs objective sharpe")
        return self

    @property
    def bars_per_step(self) -> int:
        """Environment steps of one gradient step."""
        return self.windows * self.window_bars


class OptimizerConfig(Section):
    """How gradients become weights."""

    kind: Literal["adamw", "muon_mix"] = "adamw"
    """``adamw``, or ``muon_mix``: Muon for hidden matrices and AdamW for the rest."""
    learning_rate: Positive = 3e-4
    """Learning rate of AdamW; mutated by PBT."""
    muon_ratio: Positive = 1.0
    """Learning rate of Muon as a multiple of ``learning_rate`` (Muon's update is scaled to AdamW's RMS)."""
    encoder_lr_factor: Positive = 1.0
    """Learning rate of the market encoder as a multiple of everything else's (where an encoder has no weights, as in
    ``mlp`` and ``factored``, that of the first layers of actor and critic)."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay of the matrices."""
    critic_decay_factor: NonNegative = 1.0
    """Weight decay of the critic as a multiple of ``weight_decay``; 0: the actor alone decays (Liu et al. 2021)."""
    pull: NonNegative = 0.0
    """Weight of half the squared distance of the actor's weights to those of the base checkpoint (L2-SP, Li, Grandvalet
    and Davoine 2018), decoupled from the gradient as weight decay is: after a gradient step they go the share
    ``learning rate x pull`` of the way back, at most all of it. Steps of AdamW are about as long as the learning rate,
    so that no weight gets much farther than 1 / pull from its start: 100 is a short leash. Needs ``stages.base`` and no
    pre-training stage."""
    schedule: Literal["auto", "cosine", "constant"] = "auto"
    """After warm-up. ``auto``: ``constant`` where PBT mutates the learning rate, else ``cosine`` to the floor."""
    warmup_fraction: Fraction = 0.02
    """Share of all updates over which the learning rate rises linearly."""
    floor_fraction: Fraction = 0.1
    """Learning rate at the end of the cosine, as a share of its peak."""
    max_grad_norm: Positive = 0.5
    """Global-norm bound over all gradients of the module."""
    ema_half_life: NonNegative = 0.1
    """Half-life of the evaluation weights' moving average, as a share of a generation; 0 evaluates the raw weights."""
