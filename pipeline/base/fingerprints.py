"""Short digits that stand for values, the same on every machine."""

import hashlib
import json
from typing import Any

__all__ = ["fingerprint"]

# Made once: some hundred thousand clips have two fingerprints each whenever a stage plans.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(*values: Any) -> str:
    """Return 24 hex digits that stand for ``values``, which JSON must be able to hold.

    Equal values give equal digits on every machine. Tuples count as lists; ``1`` and ``1.0`` differ.
    """
    return hashlib.blake2b(_CANONICAL.encode(values).encode(), digest_size=12).hexdigest()
