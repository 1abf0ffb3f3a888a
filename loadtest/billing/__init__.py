"""The drill of billing, see drill.py. A package only so that its tests are found."""
