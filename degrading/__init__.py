"""Simulation of low-resolution volumes, and estimates of their noise, blur and measured grid."""
