"""Commands that publish and sign adapters and manage remotes."""
