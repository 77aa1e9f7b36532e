"""PairPPO: proximal policy optimisation on RLlib with batched rollouts."""
