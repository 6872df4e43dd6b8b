"""Matrices of rank r as mathematics: points, tangent vectors, metrics, retractions, Hessians."""
