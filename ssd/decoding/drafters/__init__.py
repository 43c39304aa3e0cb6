"""How speculations are proposed: by a draft model, or by what the sequence itself said before."""
