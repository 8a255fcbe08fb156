"""Wrappers of all private PyTorch and optree APIs that fnloop uses, one file each.

``tests/test_torch_private.py`` fails if a new release changes one of them.
"""
