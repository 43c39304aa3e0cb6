"""The core that runs requests, its scheduler, and the assembly of an engine from models and options."""
