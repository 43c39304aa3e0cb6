"""The paged K/V cache and who holds its pages."""
