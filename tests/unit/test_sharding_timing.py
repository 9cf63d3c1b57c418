"""Time: a repetition time is believed only if it can be one; resampling keeps BOLD and lets nothing alias."""

import json
from pathlib import Path

import numpy as np
import pytest

from sharding.errors import InputError
from sharding.read import open_image
from sharding.timing import TimeResampler, repetition_time, resampled_frames
from tests.helpers.images import head, save, with_header


@pytest.mark.parametrize(
    ("value", "unit", "seconds"), [(0.72, "sec", 0.72), (2500, "msec", 2.5), (8e5, "usec", 0.8), (2, "unknown", 2.0)]
)
def test_header_units_are_understood(tmp_path: Path, value: float, unit: str, seconds: float) -> None:
    info = open_image(save(with_header(head(), value, unit), tmp_path))
    assert repetition_time(info) == (seconds, "header")


@pytest.mark.parametrize(("value", "unit"), [(0, "sec"), (2000, "sec"), (2, "msec"), (0.72, "hz"), (np.nan, "sec")])
def test_impossible_repetition_time_is_refused_with_the_remedy(tmp_path: Path, value: float, unit: str) -> None:
    path = save(with_header(head(), value, unit), tmp_path)
    with pytest.raises(InputError, match=rf"^{path}: TR .*give --tr SECONDS"):
        repetition_time(open_image(path))
    assert repetition_time(open_image(path), 2.0) == (2.0, "given")


@pytest.mark.parametrize("given", [0.0, -2.0, 2000.0, float("nan")])
def test_given_repetition_time_is_checked_too(tmp_path: Path, given: float) -> None:
    with pytest.raises(InputError, match="--tr, table or sidecar says"):
        repetition_time(open_image(save(head(), tmp_path)), given)


def test_sidecar_goes_before_the_header(tmp_path: Path) -> None:
    path = save(head(tr=1.0), tmp_path)
    sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 0.735}))
    assert repetition_time(open_image(path)) == (0.735, "sidecar")
    sidecar.write_text("{broken")
    with pytest.raises(InputError, match=str(sidecar)):
        repetition_time(open_image(path))


def resample(x: np.ndarray, tr: float, target: float, pieces: int = 5, kind: str = "sinc") -> np.ndarray:
    """Push a series (T, V) in pieces."""
    resampler = TimeResampler(len(x), tr, target, kind)
    out = np.concatenate([resampler.push(part) for part in np.array_split(x.astype(np.float32), pieces)])
    assert len(out) == resampler.num_out
    return out


@pytest.mark.parametrize(("tr", "target"), [(2.5, 0.8), (0.72, 0.8), (0.5, 0.8), (2.0, 0.8), (0.3, 2.0)])
def test_pieces_do_not_matter(tr: float, target: float) -> None:
    x = np.random.default_rng(0).standard_normal((60, 7))
    whole = resample(x, tr, target, 1)
    for pieces in (2, 13, 60):
        np.testing.assert_array_equal(resample(x, tr, target, pieces), whole)


def fitted(series: np.ndarray, frequency: float, tr: float) -> tuple[float, float, float]:
    """Amplitude and phase (degrees) of a wave in a series, and what is left beside it (rms over the wave's)."""
    times = np.arange(len(series)) * tr
    waves = np.stack([np.cos(2 * np.pi * frequency * times), -np.sin(2 * np.pi * frequency * times)], axis=1)
    inner = slice(25, -25)
    (a, b), *_ = np.linalg.lstsq(waves[inner], series[inner], rcond=None)
    left = np.std(series[inner] - waves[inner] @ [a, b]) / np.std(waves[inner] @ [a, b])
    return float(np.hypot(a, b)), float(np.degrees(np.arctan2(b, a))), float(left)


@pytest.mark.parametrize("tr", [0.4, 0.5, 0.72, 0.735, 1.0, 1.5, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("frequency", [0.01, 0.03, 0.05, 0.08, 0.1])
def test_waves_of_the_bold_band_keep_amplitude_and_phase(tr: float, frequency: float) -> None:
    times = np.arange(0, 700, tr)
    wave = np.cos(2 * np.pi * frequency * times + np.radians(40))
    amplitude, phase, left = fitted(resample(wave[:, None], tr, 0.8)[:, 0], frequency, 0.8)
    assert amplitude == pytest.approx(1, abs=0.01)
    assert phase == pytest.approx(40, abs=0.1)
    assert left < 0.01


def test_linear_interpolation_weakens_fast_waves_which_is_why_it_is_not_the_default() -> None:
    times = np.arange(0, 700, 2.0)
    wave = np.cos(2 * np.pi * 0.1 * times)
    amplitude, phase, left = fitted(resample(wave[:, None], 2.0, 0.8, kind="linear")[:, 0], 0.1, 0.8)
    assert 0.86 < amplitude < 0.9
    assert phase == pytest.approx(0, abs=0.1)
    assert 0.05 < left < 0.1


def test_up_sampling_can_be_linear_interpolation() -> None:
    x = np.random.default_rng(0).standard_normal((121, 3))
    out = resample(x, 2.5, 0.8, kind="linear")
    assert len(out) == resampled_frames(121, 2.5, 0.8) == 376
    times = np.arange(376) * 0.8
    for v in range(3):
        np.testing.assert_allclose(out[:, v], np.interp(times, np.arange(121) * 2.5, x[:, v]), atol=1e-5)


def test_same_rate_leaves_frames_alone() -> None:
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    np.testing.assert_array_equal(resample(x, 0.8, 0.8), x)


@pytest.mark.parametrize("frequency", [0.9, 1.1, 1.2])
def test_down_sampling_lets_fast_waves_not_alias(frequency: float) -> None:
    times = np.arange(0, 300, 0.4)
    wave = np.cos(2 * np.pi * frequency * times)
    filtered = resample(wave[:, None], 0.4, 0.8)[10:-10, 0]
    plain = wave[::2][10:-10]
    assert np.sqrt(np.mean(plain**2)) > 0.5
    assert np.sqrt(np.mean(filtered**2)) < 0.02


def test_constant_series_stays_constant_to_its_ends() -> None:
    for tr in (0.3, 0.72, 2.0):
        np.testing.assert_allclose(resample(np.full((50, 2), 1000.0), tr, 0.8), 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("said", "hint"), [(720.0, r"\(in milliseconds it would be 0.72 s\)"), (1e6, "to 20 s; give --tr")]
)
def test_repetition_time_in_milliseconds_is_recognised_but_not_believed(tmp_path: Path, said: float, hint: str) -> None:
    path = save(head(tr=1.0), tmp_path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"RepetitionTime": said}))
    with pytest.raises(InputError, match=hint):
        repetition_time(open_image(path))
