"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""
