"""The three loops and their parts: verifier (target side), drafters and speculation cache (draft side), policies, stats."""
