"""The ball-and-stick model against NumPy, the tensor that fits start from, and the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bygrad.problems import BallAndStick
from bygrad.solvers import solve


@pytest.fixture(scope="module")
def family() -> BallAndStick:
    return BallAndStick.embedded()


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    return BallAndStick.scan()


def model(bvals, bvecs, signal, diffusivity, fraction, direction):
    """Two compartments in NumPy: the stick as a tensor of rank one."""
    stick = diffusivity * np.outer(direction, direction)
    along = np.einsum("ni,ij,nj->n", bvecs, stick, bvecs)
    return signal * (fraction * np.exp(-bvals * along) + (1 - fraction) * np.exp(-bvals * diffusivity))


def draw(family, count, seed=0):
    """Params of simulated voxels, `[count, 5]`, in float64."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.vmap(lambda key: family.restart(jnp.zeros(102), key))(keys), float)


def noiseless(family, params):
    bvals, bvecs = np.asarray(family.bvals, float), np.asarray(family.bvecs, float)
    tissue = [np.asarray(part, float) for part in family.tissue(params)]
    return np.stack([model(bvals, bvecs, *one) for one in zip(*tissue, strict=True)])


@given(st.floats(-0.5, 0.5), st.floats(0.1, 3.0), st.floats(0.0, 1.0), st.floats(0.0, np.pi), st.floats(-4.0, 4.0))
def test_residuals_are_those_of_numpy(signal, diffusivity, fraction, theta, phi):
    family, data = BallAndStick.embedded(), np.linspace(1.0, 0.1, 102)
    params = np.array([signal, np.log(diffusivity), np.arcsin(np.sqrt(fraction)), theta, phi])
    direction = [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
    with jax.enable_x64(True):
        ours = family.residuals(jnp.asarray(params), jnp.asarray(data))
    bvals, bvecs = np.asarray(family.bvals, float), np.asarray(family.bvecs, float)
    wanted = model(bvals, bvecs, np.exp(signal), diffusivity, fraction, np.array(direction)) - data
    np.testing.assert_allclose(np.asarray(ours) * family.noise, wanted, atol=1e-12)


def test_a_fit_without_noise_recovers_the_tissue(family):
    truth = draw(family, 40)
    found = solve(family, noiseless(family, truth), batch=64)
    assert found.success.all()
    wanted, tissue = family.tissue(truth), family.tissue(found.x)
    for name in ("signal", "diffusivity", "fraction"):
        np.testing.assert_allclose(getattr(tissue, name), getattr(wanted, name), rtol=1e-4)
    cosine = np.sum(np.asarray(tissue.direction) * np.asarray(wanted.direction), axis=1)
    np.testing.assert_allclose(np.abs(cosine), 1.0, rtol=1e-6)


def test_the_start_is_the_answer_where_diffusion_is_gaussian(family):
    """For weak gradients the tensor's eigenvalues and first eigenvector are the params."""
    weak = BallAndStick(0.01 * np.asarray(family.bvals), np.asarray(family.bvecs))
    truth = draw(weak, 40)
    data = noiseless(weak, truth)
    with jax.enable_x64(True):
        starts = jax.vmap(lambda one: weak.init(one, jax.random.key(0)))(jnp.asarray(data))
        assert starts.dtype == jnp.float64
    wanted, tissue = weak.tissue(truth), weak.tissue(np.asarray(starts))
    np.testing.assert_allclose(tissue.diffusivity, wanted.diffusivity, rtol=0.02)
    np.testing.assert_allclose(tissue.fraction, wanted.fraction, atol=0.05)
    cosine = np.sum(np.asarray(tissue.direction) * np.asarray(wanted.direction), axis=1)
    clear = np.asarray(wanted.fraction) > 0.1  # a direction means little without a stick
    assert np.abs(cosine[clear]).min() > 0.999


@pytest.mark.slow
def test_simulated_voxels_start_near_their_direction(family):
    keys = jax.random.split(jax.random.key(1), 100)
    starts = jax.vmap(lambda key: family.init(family.sample(key), key))(keys)
    # `sample` draws the tissue from the first half of its key.
    truth = jax.vmap(lambda key: family.restart(jnp.zeros(102), jax.random.split(key)[0]))(keys)
    cosine = np.abs(np.sum(np.asarray(family.tissue(starts).direction * family.tissue(truth).direction), axis=1))
    assert np.median(cosine) > 0.95  # 0.5 by chance


def test_noise_is_that_of_a_magnitude_image():
    """Where nothing is left of the signal, Rician noise is Rayleigh's: its mean is the noise times the root of π/2."""
    bvals, bvecs = np.asarray(BallAndStick.embedded().bvals), np.asarray(BallAndStick.embedded().bvecs)
    strong = bvals > 1.6
    dark = BallAndStick(np.where(strong, 1e7, bvals * 1e-3).astype(np.float32), bvecs, noise=0.02)
    voxels = np.asarray(jax.vmap(dark.sample)(jax.random.split(jax.random.key(2), 300)))
    assert voxels[:, strong].mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.02)


def test_the_scan_is_whole_and_smooth(family, scan):
    assert scan.shape == (6, 10, 10, 102) and np.isfinite(scan).all() and (scan >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(family.bvecs, axis=1), 1.0, atol=1e-5)
    assert family.bvals.max() == pytest.approx(4.065, abs=0.1)
    strong, weak = np.asarray(family.bvals) > 3, np.asarray(family.bvals) < 1
    assert (scan[..., strong].mean(axis=-1) < 0.6 * scan[..., weak].mean(axis=-1)).all()
    across = np.abs(np.diff(scan, axis=0)).mean()
    assert across < 0.7 * np.abs(scan[:-1] - scan[1:][::-1, ::-1, ::-1]).mean()  # neighbours are alike


def test_the_scan_is_dipys(scan):
    data = pytest.importorskip("dipy.data", reason="the scan comes from dipy, which is not installed")
    nibabel = pytest.importorskip("nibabel")
    signals, bvals, bvecs = data.get_fnames(name="small_101D")
    theirs = np.asarray(nibabel.load(signals).dataobj, np.float32)
    np.testing.assert_array_equal(scan, theirs / theirs[..., :1])
    family = BallAndStick.embedded()
    np.testing.assert_allclose(family.bvals * 1000, np.loadtxt(bvals), rtol=1e-6)
    np.testing.assert_allclose(family.bvecs, np.loadtxt(bvecs).T, atol=1e-7)


def test_real_voxels_are_fitted_as_by_scipy(family, scan):
    optimize = pytest.importorskip("scipy.optimize")
    voxels = scan.reshape(-1, 102)[::50].astype(float)
    found = solve(family, voxels, batch=64)
    bvals, bvecs = np.asarray(family.bvals, float), np.asarray(family.bvecs, float)

    def residuals(p, data):
        n = [np.sin(p[3]) * np.cos(p[4]), np.sin(p[3]) * np.sin(p[4]), np.cos(p[3])]
        tissue = np.exp(p[0]), np.exp(p[1]), np.sin(p[2]) ** 2, np.array(n)
        return (model(bvals, bvecs, *tissue) - data) / family.noise

    for data, start, cost in zip(voxels, found.x, found.cost, strict=True):
        # From the solution itself: it is a minimum if MINPACK cannot improve on it.
        theirs = optimize.least_squares(residuals, start + 1e-3, args=(data,), method="lm", xtol=1e-12, ftol=1e-12)
        assert cost == pytest.approx(theirs.cost, rel=1e-6)


@pytest.mark.parametrize(
    ("unit", "noise", "said"),
    [
        (1000.0, 0.05, r"b up to 1.6.*Give b in ms/µm²"),
        (1.0, 0.0, "residuals are divided"),
        (1.0, float("nan"), "noise is nan"),
    ],
)
def test_mistakes_are_refused(unit, noise, said, family):
    with pytest.raises(ValueError, match=said):
        BallAndStick(np.asarray(family.bvals) * unit, np.asarray(family.bvecs), noise)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda bvals, bvecs: (bvals, bvecs.T), r"bvecs \[3, 102\], but .* Give bvecs\.T"),
        (lambda bvals, bvecs: (bvals[:-1], bvecs), r"a direction for every volume"),
        (lambda bvals, bvecs: (bvals, 2 * bvecs), "Volume 0 .* direction of length 2"),
        (lambda bvals, bvecs: (bvals, np.where(bvals[:, None] > 1, 0, bvecs)), "direction of length 0"),
        (lambda bvals, bvecs: (np.where(bvals > 1, np.nan, bvals), bvecs), "b = nan"),
        (lambda bvals, bvecs: (-bvals, bvecs), "not negative"),
    ],
)
def test_gradients_that_are_none_are_refused(change, says, family):
    with pytest.raises(ValueError, match=says):
        BallAndStick(*change(np.asarray(family.bvals), np.asarray(family.bvecs)))


def test_without_a_gradient_there_need_be_no_direction(family):
    bvals, bvecs = np.asarray(family.bvals), np.asarray(family.bvecs)
    none = bvals < 0.02
    assert 0 < none.sum() < 102
    without = BallAndStick(np.where(none, 0, bvals), np.where(none[:, None], 0, bvecs))
    params = draw(family, 1)[0]
    np.testing.assert_allclose(without.signals(jnp.asarray(params))[none], np.exp(params[0]), rtol=1e-6)


def test_a_voxel_without_signal_starts_somewhere(family):
    for bad in (np.zeros(102), np.full(102, np.nan)):
        assert np.isfinite(family.init(jnp.asarray(bad, jnp.float32), jax.random.key(0))).all()
