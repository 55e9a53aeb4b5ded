"""Sparse attention kernels.

Kept light on purpose: with a checkout on ``sys.path`` other libraries may import this folder
under the bare name ``kernels`` and look for a version, which must not be found here.
"""
