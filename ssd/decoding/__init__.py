"""The three round loops and what they are made of: verifier (target side), speculator (draft side), fan-out, speed model, stats."""
