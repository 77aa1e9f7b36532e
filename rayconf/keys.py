"""Randomness by name: every stream is keyed by what it is for, never by when it is drawn."""

import hashlib


def derive_key(*parts: object) -> int:
    """A 64-bit key from the given parts: the BLAKE2b digest of their text joined by ``|``.

    The same parts give the same key on every machine and in every process, so a generation's
    random numbers depend on (seed, pair, member, generation, purpose) alone.
    """
    text = "|".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def torch_seed(*parts: object) -> int:
    """``derive_key`` reduced to the signed 63-bit range that ``torch.Generator.manual_seed`` takes."""
    return derive_key(*parts) % 2**63
