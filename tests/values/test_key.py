"""Keys: distinct, stable, well mixed."""

from __future__ import annotations

from fnloop.values.key import fold


def test_the_mixing_is_splitmix64():
    # The first outputs of SplitMix64 seeded with 0 and with 1234567 (published test vectors).
    assert fold(0, 0) % 2**64 == 0xE220A8397B1DCDAF
    assert fold(0, 0x9E3779B97F4A7C15) % 2**64 == 0x6E789E6AA1B965F4
    assert fold(0, 1234567) % 2**64 == 6457827717110365317


def test_positions_give_distinct_int64_keys():
    keys = {
        fold(seed, step, micro) for seed in range(5) for step in range(100) for micro in range(8)
    }
    assert len(keys) == 4000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert fold(-1, 0) == fold(2**64 - 1, 0)


def test_names_are_positions():
    assert len({fold(0, name) for name in ("a", "b", "ab", "generator", "discriminator", "")}) == 6


def test_one_bit_of_the_position_flips_half_of_the_key():
    flips = [bin((fold(7, i) ^ fold(7, i ^ 1)) & (2**64 - 1)).count("1") for i in range(0, 2000, 2)]
    assert 31 < sum(flips) / len(flips) < 33
