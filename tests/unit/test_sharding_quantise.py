"""int8 by voxel keeps the signal: of real ranges, of voxels beside a bright vessel, of voxels that hardly move."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sharding.quantise import CODE_MAX, VoxelMoments, decode, encode, power_of_two_unit, voxel_scale


def moments_of(x: np.ndarray) -> VoxelMoments:
    x = x.astype(np.float64)
    return VoxelMoments(x.mean(axis=0), x.std(axis=0), x.min(axis=0), x.max(axis=0))


def round_trip(x: np.ndarray, range_sd: float = 12.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Decoded signal, codes, scale, stats, unit of x float32 (T, V)."""
    unit = power_of_two_unit(float(x.std()), float(np.abs(x).max()))
    scale, stats = voxel_scale(moments_of(x), unit, range_sd)
    codes, _ = encode(x, scale, unit)
    return decode(codes, scale, unit), codes, scale, stats, unit


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64) - x.mean(axis=0), y.astype(np.float64) - y.mean(axis=0)
    return (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))


def brain(frames: int = 200, voxels: int = 4000, seed: int = 0) -> np.ndarray:
    """Voxels of level 200 to 1500 that fluctuate by 0.5 to 3 per cent, float32 (T, V)."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(200, 1500, voxels)
    return (level * (1 + rng.uniform(0.005, 0.03, voxels) * rng.standard_normal((frames, voxels)))).astype(np.float32)


def test_round_trip_keeps_every_series() -> None:
    x = brain()
    found = correlations(x, round_trip(x)[0])
    assert np.median(found) > 0.9999
    assert found.min() > 0.999


def test_bright_vessels_cost_other_voxels_nothing() -> None:
    x = brain()
    brighter = x.copy()
    brighter[:, :4] *= 4
    plain, beside = round_trip(x)[0][:, 4:], round_trip(brighter)[0][:, 4:]
    np.testing.assert_allclose(correlations(x[:, 4:], beside), correlations(x[:, 4:], plain), atol=1e-5)


def test_extremes_fit_unless_they_are_outliers() -> None:
    x = brain(frames=400)
    unit = power_of_two_unit(float(x.std()), float(np.abs(x).max()))
    scale, _ = voxel_scale(moments_of(x), unit, 12.0)
    codes, clipped = encode(x, scale, unit)
    assert clipped == 0
    assert (np.abs(codes.astype(int)).max(axis=0) >= CODE_MAX - 1).all()
    x[7, 3] += 1e5  # a spike of some 20 sd
    scale, _ = voxel_scale(moments_of(x), unit, 12.0)
    codes, clipped = encode(x, scale, unit)
    assert clipped == 1
    assert codes[7, 3] == CODE_MAX


def test_voxel_that_hardly_moves_is_not_lost_to_the_rounding_of_its_offset() -> None:
    rng = np.random.default_rng(0)
    # Mean 10000, sd 0.5: the offset's float16 is off by up to 4, eight times the signal.
    quiet = 10000.3 + 0.5 * rng.standard_normal((300, 50))
    x = np.concatenate([quiet, 10000 + 3000 * rng.standard_normal((300, 50))], axis=1).astype(np.float32)
    decoded = round_trip(x)[0]
    assert correlations(x, decoded)[:50].min() > 0.99


def test_constant_voxel_comes_back_as_its_value() -> None:
    x = brain(voxels=20)
    x[:, 0], x[:, 1] = 0, 123.4
    decoded, codes, scale, stats, _ = round_trip(x)
    assert not codes[:, :2].any()
    assert not scale[1, :2].any()
    assert not stats[:, :2].any()
    np.testing.assert_array_equal(decoded[:, 0], 0)
    np.testing.assert_allclose(decoded[:, 1], 123.4, rtol=5e-4)


def test_stats_give_the_z_score_of_each_voxel() -> None:
    x = brain()
    _, codes, scale, stats, _ = round_trip(x)
    z = scale[1].astype(np.float32) * codes / stats[1].astype(np.float32) + stats[0].astype(np.float32)
    expected = (x - x.mean(axis=0)) / x.std(axis=0)
    assert np.abs(z - expected).max() < 0.05
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.01)


@given(
    level=st.floats(-1e6, 1e6, allow_nan=False),
    spread=st.floats(1e-3, 1e6),
    contrast=st.floats(0, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_error_is_at_most_half_a_step_for_any_run(level: float, spread: float, contrast: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = level + spread * contrast * rng.standard_normal(30) + spread * rng.standard_normal((40, 30))
    x = x.astype(np.float32)
    assume(x.std() > 0)
    decoded, _, scale, stats, unit = round_trip(x)
    assert np.isfinite(scale.astype(np.float32)).all()
    assert np.isfinite(stats.astype(np.float32)).all()
    step = scale[1].astype(np.float64) * unit
    float_error = 4 * np.finfo(np.float32).eps * (np.abs(x).max() + np.abs(scale[0].astype(np.float64) * unit).max())
    moving = step > 0
    error = np.abs(decoded.astype(np.float64) - x).max(axis=0)
    assert (error[moving] <= 0.51 * step[moving] + float_error).all()
