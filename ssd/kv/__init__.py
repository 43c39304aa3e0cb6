"""The paged K/V cache."""
