"""Every private PyTorch (and optree) API that fnloop relies on, one file each.

``tests/test_torch_private.py`` fails when a new release moves one of them.
"""
