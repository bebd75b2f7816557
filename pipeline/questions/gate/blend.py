"""The blend: soft routing whose weights are learned, so that predictions err least.

A gate says which bin a spectrum is in, which is not quite what is asked: near an edge two experts are as good, where a
spectrum says little the global model is better than any, and an expert may be good beyond its bin. The blend takes the
gate's probabilities p and corrects them by what the global model says of all labels. Of the global model (m = 0, which
stands for the outside) and K experts::

    ŷ = Σ_m w_m ŷ_m      w = softmax_m(τ log p_m + b_m + B_m·z)

with z the global model's predictions u of the Q labels, less their means and in units of their standard deviations,
and the products u_i u_j, i ≤ j. τ = 1, b = B = 0 is fall-back routing that always trusts its gate. Given predictions
of training spectra by models that did not see their fold, the blend minimises::

    Σ(y − ŷ)² / σ² + λ ((τ − 1)² + |b|² + |B|²)        σ² = mean (y − ŷ_fallback)²

by L-BFGS with the exact gradient, from that start. λ is the one whose blends, fitted to all folds but one, err least on
that one. This is the gate of a mixture of experts (Jacobs et al. 1991, Neural Computation 3, 79) whose experts stay as
they are. It is kept only where it beats soft routing on held-out folds by more than the difference's standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from pipeline.base import (
    Progress,
    SilentProgress,
    Task,
    name_group,
    one_blas_thread,
    parse_array,
    read_json,
    replacing,
    run_tasks,
)
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import content_hash
from pipeline.errors import InputError
from pipeline.noise import Noise
from pipeline.questions.gate.answer import BlendErrors, BlendSummary
from pipeline.questions.gate.collect import FeatureRows, grid_items, rows_file
from pipeline.questions.gate.gates import gate_from_dict
from pipeline.questions.gate.routing import FALLBACK, SOFT, Evidence, mix_predictions
from pipeline.questions.gate.solve import read_held_out
from pipeline.questions.question import Facts, Trained
from pipeline.ridge import FoldModelsJob, find_starved_bin, read_fold_models, solve_fold_models, write_fold_models
from pipeline.schema import BLEND_ALGORITHM, LABELS
from pipeline.scoring import SCOPES

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Blend",
    "BlendJob",
    "BlendProblem",
    "HeldOutErrors",
    "HeldOutRows",
    "blend_file",
    "fit_blend",
    "fit_blend_jobs",
    "fit_blends",
    "fold_models_file",
    "solve_folds",
    "summarise_blends",
]

FloatArray = NDArray[np.float64]
#: λ tried, the strongest first; the search stops where held-out errors grow again.
STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1e0)
#: Probabilities below this count as this: beyond it a logarithm says more than a gate knows.
_LEAST = 1e-6
_ITERATIONS = 200
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """N training spectra under models and a gate that did not see their fold.

    Attributes
    ----------
    y
        The target label, shape (N,).
    predicted
        The target by the global model and every expert, shape (N, 1 + K), label units.
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1).
    of_labels
        All labels by the global model, shape (N, Q), label units.
    folds
        The fold of each spectrum, shape (N,).
    covered
        Whether it lies in a bin, shape (N,).
    """

    y: FloatArray
    predicted: FloatArray
    probabilities: FloatArray
    of_labels: FloatArray
    folds: NDArray[np.int64]
    covered: NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOutErrors:
    """Mean squared errors of the same held-out training spectra, label units².

    Attributes
    ----------
    blend
        Of blends fitted to the other folds.
    soft, fallback, of_global
        Of soft routing, of fall-back routing that always trusts its gate, of the global model.
    margin
        Standard error of ``soft − blend``.
    count
        Spectra.
    """

    blend: float
    soft: float
    fallback: float
    of_global: float
    margin: float
    count: int

    @property
    def is_better(self) -> bool:
        """Whether the blend beats soft routing by more than the standard error of the difference."""
        return self.soft - self.blend > self.margin


@dataclass(frozen=True, eq=False)
class Blend:
    """Learned weights of the global model and K experts, from probabilities and predictions of Q labels.

    Attributes
    ----------
    tau
        What multiplies log p.
    slopes
        b (first column) and B, shape (1 + K, 1 + D) for D = Q + Q(Q + 1)/2 inputs z.
    centre, scale
        Means and standard deviations of the predicted labels, shapes (Q,), label units.
    strength
        λ.
    errors
        On held-out folds, for every scope (``covered``, ``all``).
    """

    tau: float
    slopes: FloatArray
    centre: FloatArray
    scale: FloatArray
    strength: float
    errors: Mapping[str, HeldOutErrors]

    @property
    def is_kept(self) -> bool:
        """Whether it beat soft routing, on covered spectra and on all."""
        return all(one.is_better for one in self.errors.values())

    def weights(self, probabilities: ArrayLike, of_labels: ArrayLike) -> FloatArray:
        """Return w, shape (N, 1 + K), in [0, 1]; rows add up to 1; see :class:`HeldOutRows` for the parameters."""
        inputs = _expand(of_labels, self.centre, self.scale)
        return _weigh(self.tau, self.slopes, _log_probabilities(probabilities), inputs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` gives back the same numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("slopes", "centre", "scale")}
        errors = {scope: vars(one) for scope, one in self.errors.items()}
        return {"tau": self.tau, "strength": self.strength, **arrays, "errors": errors, "kept": self.is_kept}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Blend:
        """Return the blend that :meth:`to_dict` was called on."""
        n_labels = len(plain["centre"])
        n_inputs = 1 + n_labels + n_labels * (n_labels + 1) // 2
        shapes = {"slopes": (len(plain["slopes"]), n_inputs), "centre": (n_labels,), "scale": (n_labels,)}
        arrays = {name: parse_array(plain, name, shape) for name, shape in shapes.items()}
        errors = {scope: HeldOutErrors(**one) for scope, one in plain["errors"].items()}
        return cls(tau=plain["tau"], strength=plain["strength"], errors=errors, **arrays)


@dataclass(frozen=True, eq=False)
class BlendProblem:
    """What a blend minimises, as a function of θ = (τ − 1, and b and B row by row).

    Attributes
    ----------
    y, predicted
        See :class:`HeldOutRows`.
    log_p
        log p_m, the outside first, shape (N, 1 + K).
    inputs
        A column of ones, and z, shape (N, 1 + D).
    unit
        σ².
    """

    y: FloatArray
    predicted: FloatArray
    log_p: FloatArray
    inputs: FloatArray
    unit: float

    @property
    def start(self) -> FloatArray:
        """Fall-back routing."""
        return np.zeros(1 + self.log_p.shape[1] * self.inputs.shape[1])

    def __getitem__(self, rows: NDArray[np.bool_]) -> BlendProblem:
        """Return the same problem on some of the spectra, in the same unit."""
        arrays = {name: getattr(self, name)[rows] for name in ("y", "predicted", "log_p", "inputs")}
        return replace(self, **arrays)

    def split(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return τ, and b and B as columns."""
        return float(1 + theta[0]), theta[1:].reshape(self.log_p.shape[1], self.inputs.shape[1])

    def predict(self, theta: FloatArray) -> FloatArray:
        """Return ŷ, shape (N,)."""
        return np.asarray((_weigh(*self.split(theta), self.log_p, self.inputs) * self.predicted).sum(axis=1))

    def evaluate(self, theta: FloatArray, strength: float) -> tuple[float, FloatArray]:
        """Return the penalised error and its gradient, with ∂ŷ/∂(logit m) = w_m (ŷ_m − ŷ)."""
        tau, slopes = self.split(theta)
        value, of_tau, of_slopes = 0.0, 0.0, np.zeros_like(slopes)
        # Block by block: what is small stays in the cache, and fresh memory costs more than the arithmetic.
        for start in range(0, len(self.y), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            log_p, inputs, predicted = self.log_p[rows], self.inputs[rows], self.predicted[rows]
            weights = _weigh(tau, slopes, log_p, inputs)
            mixed = np.einsum("nm,nm->n", weights, predicted)
            error = mixed - self.y[rows]
            weights *= predicted - mixed[:, None]
            weights *= error[:, None]
            value += float(error @ error)
            of_tau += float(np.einsum("nm,nm->", weights, log_p))
            of_slopes += weights.T @ inputs
        gradient = np.concatenate([[of_tau], of_slopes.ravel()]) * (2 / self.unit)
        return value / self.unit + strength * float(theta @ theta), gradient + 2 * strength * theta

    def minimise(self, strength: float, start: FloatArray) -> FloatArray:
        """Return θ of the least penalised error that L-BFGS reaches from a start."""
        from scipy.optimize import minimize  # a quarter of a second that most runs need not wait

        found = minimize(
            self.evaluate,
            start,
            args=(strength,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-8},
        )
        return np.asarray(found.x, dtype=np.float64)


def fit_blend(rows: HeldOutRows) -> Blend:
    """Learn a blend from training spectra, and hold it against soft routing on folds that it was not fitted to.

    Raises
    ------
    InputError
        If the spectra lie in fewer than two folds.
    """
    folds = np.unique(rows.folds)
    if len(folds) < 2:
        raise InputError(f"a blend needs training spectra of at least two folds, found {len(folds)}; use more folds")
    known = Evidence(rows.probabilities)
    soft, fallback = (mix_predictions(route.weights(known), rows.predicted) for route in (SOFT, FALLBACK))
    centre, width = rows.of_labels.mean(axis=0), rows.of_labels.std(axis=0)
    scale = np.where(width > 0, width, 1.0)
    unit = float(((rows.y - fallback) ** 2).mean()) or 1.0
    inputs = _expand(rows.of_labels, centre, scale)
    problem = BlendProblem(rows.y, rows.predicted, _log_probabilities(rows.probabilities), inputs, unit)
    # One BLAS thread: the bits of a product may depend on their number.
    with one_blas_thread():
        strengths, held_out = _search_strength(problem, [rows.folds == fold for fold in folds])
        theta = problem.start
        for strength in strengths:
            theta = problem.minimise(strength, theta)
    tau, slopes = problem.split(theta)
    routed = {"blend": held_out, "soft": soft, "fallback": fallback, "of_global": rows.predicted[:, 0]}
    squares = {name: (rows.y - values) ** 2 for name, values in routed.items()}
    parts = (rows.covered, np.full(len(rows.y), True))
    errors = {scope: _summarise(squares, part) for scope, part in zip(SCOPES, parts, strict=True) if part.any()}
    return Blend(tau, slopes, centre, scale, strengths[-1], errors)


def _search_strength(problem: BlendProblem, folds: list[NDArray[np.bool_]]) -> tuple[tuple[float, ...], FloatArray]:
    """Return the strengths down to the best one, and each spectrum's prediction by the other folds' best blend."""
    outside = [problem[~held_out] for held_out in folds]
    inside = [problem[held_out] for held_out in folds]
    thetas = [problem.start] * len(folds)
    best, least, n_best = np.empty_like(problem.y), np.inf, 0
    for tried, strength in enumerate(STRENGTHS, start=1):
        predicted = np.empty_like(problem.y)
        for k, held_out in enumerate(folds):
            thetas[k] = outside[k].minimise(strength, thetas[k])
            predicted[held_out] = inside[k].predict(thetas[k])
        error = float(((problem.y - predicted) ** 2).sum())
        if not error < least:
            break
        best, least, n_best = predicted, error, tried
    return STRENGTHS[:n_best], best


def _summarise(squares: Mapping[str, FloatArray], part: NDArray[np.bool_]) -> HeldOutErrors:
    own = {name: values[part] for name, values in squares.items()}
    difference, count = own["soft"] - own["blend"], int(part.sum())
    means = {name: float(values.mean()) for name, values in own.items()}
    return HeldOutErrors(**means, margin=float(difference.std() / np.sqrt(count)), count=count)


def _expand(of_labels: ArrayLike, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """Return a column of ones and z, shape (N, 1 + D)."""
    u = (np.asarray(of_labels, dtype=np.float64) - centre) / scale
    first, second = np.triu_indices(u.shape[1])
    return np.concatenate([np.ones((len(u), 1)), u, u[:, first] * u[:, second]], axis=1)


def _log_probabilities(probabilities: ArrayLike) -> FloatArray:
    """Return log p, shape (N, 1 + K), the outside first as the global model is."""
    p = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.maximum(np.roll(p, 1, axis=1), _LEAST))


def _weigh(tau: float, slopes: FloatArray, log_p: FloatArray, inputs: FloatArray) -> FloatArray:
    """Return softmax(τ log p + b + B·z), shape (N, 1 + K)."""
    return np.asarray(softmax(tau * log_p + inputs @ slopes.T, axis=1))


# --- Fitting blends, one task for each noise: from the rows that a pass has left to a few numbers.


#: Spectra that a blend is fitted to, at most: some hundred numbers do not need more, and time grows with them.
_MOST_ROWS = 20_000


@dataclass(frozen=True)
class BlendJob:
    """The blend of one noise.

    Attributes
    ----------
    rows
        A file of :mod:`pipeline.questions.gate.collect`, with predictions by the fold models.
    fold_models
        The file of these.
    gate
        The file of the gate.
    held_out
        The file of that gate's probabilities by folds that did not see the spectra, where it was fitted to these rows;
        None for a gate of a few numbers from all moments, which is asked itself.
    grid
        Edges by column of the bins, as items.
    """

    rows: str
    fold_models: str
    gate: str
    held_out: str | None
    grid: tuple[tuple[str, tuple[float, ...]], ...]


def fit_blend_jobs(
    jobs: Sequence[BlendJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fit the blend of every job; yield which job, and its blend as plain values, as they are done."""
    tasks = [Task((name_group("blend", "fit"), job.rows, k), job, 1) for k, job in enumerate(jobs)]
    with (progress or SilentProgress()).step("blend", len(tasks), "blends") as advance:
        for task, plain in run_tasks(client, _fit_job, tasks, "fitting blends", advance):
            yield task.key[-1], plain


def _fit_job(job: BlendJob, report: Callable[[int], None]) -> dict[str, Any]:
    """Fit one blend. The body of a Dask task."""
    rows, models = FeatureRows.read(Path(job.rows)), read_fold_models(Path(job.fold_models))
    of_target, of_labels = models.split_columns(rows.predicted)
    if job.held_out is not None:
        probabilities = read_held_out(Path(job.held_out))
    else:
        gate = read_json(Path(job.gate), partial(gate_from_dict, grid=BinGrid(dict(job.grid))))
        probabilities = gate.probabilities(of_labels)
    taken = slice(None, None, -(-len(rows.rows) // _MOST_ROWS))
    blend = fit_blend(
        HeldOutRows(
            y=np.ascontiguousarray(rows.y[taken, LABELS.index(models.target)]),
            predicted=of_target[taken],
            probabilities=probabilities[taken],
            of_labels=of_labels[taken],
            folds=rows.folds[taken],
            covered=rows.bins[taken] != OUTSIDE,
        )
    )
    report(1)
    return blend.to_dict()


# --- What the summary says of blends: how they and soft routing err on held-out folds of the training spectra.


def summarise_blends(blends: Sequence[Blend]) -> BlendSummary | None:
    """Return how the blends of one noise level did on held-out folds of the training spectra; None without any."""
    if not blends:
        return None
    scopes = {
        scope: BlendErrors(
            **{
                name: float(np.mean([getattr(one.errors[scope], name) for one in blends]))
                for name in ("blend", "soft", "fallback", "of_global", "margin")
            },
            count=sum(one.errors[scope].count for one in blends),
        )
        for scope in blends[0].errors
    }
    kept = sum(one.is_kept for one in blends)
    return BlendSummary(n=len(blends), kept=kept, held_out=scopes, sentence=_say(kept, len(blends), scopes))


def _say(kept: int, n: int, scopes: Mapping[str, BlendErrors]) -> str:
    shown = scopes.get("covered") or scopes["all"]
    errors = (
        f"On held-out folds of the training spectra the blend's mean squared error is {shown.blend:.4g}, soft "
        f"routing's {shown.soft:.4g} and the global model's {shown.of_global:.4g}"
    )
    if kept == n:
        return f"{errors}: the blend is kept."
    if kept == 0:
        return f"{errors}: the blend is not kept, and the route blend is soft routing."
    return f"{errors}: it is kept for {kept} of {n} noise draws, and the route blend is soft routing for the others."


# --- The blend of a run: fold models, and routing weights learned from what these say of training spectra.
#
# ``gates/<noise>_folds.npz`` holds the models without each fold, ``gates/<noise>_blend.json`` the blend. Nothing here
# sees the test spectra.


def fold_models_file(noise: Noise) -> str:
    """Return the name of a noise's models without each fold in the run folder."""
    return f"gates/{noise.name}_folds.npz"


def blend_file(noise: Noise) -> str:
    """Return the name of a noise's blend in the run folder."""
    return f"gates/{noise.name}_blend.json"


def solve_folds(facts: Facts, trained: Sequence[Trained]) -> list[str] | None:
    """Solve the models without each fold that are not there yet; return the files of all noises.

    None in a run without a blend, and, with a warning, where a bin has too few spectra outside some fold.
    """
    if facts.settings.gate is None or not facts.settings.gate.blend:
        return None
    jobs = [
        FoldModelsJob.of_models(one.moments, facts.binnings[0], facts.settings.ridge, one.whole, facts.settings.target)
        for one in trained
    ]
    if starved := next((words for job in jobs if (words := find_starved_bin(job))), None):
        facts.warnings.append(f"the blend is left out: {starved}")
        return None
    names = [fold_models_file(one.noise) for one in trained]
    keys = [content_hash([BLEND_ALGORITHM, facts.products[one.file], facts.settings.target]) for one in trained]
    missing = [k for k, name in enumerate(names) if not facts.products.is_made(name, keys[k])]
    if missing:
        for place, models_of_folds in solve_fold_models(
            [jobs[k] for k in missing], client=facts.client, progress=facts.progress
        ):
            k = missing[place]
            write_fold_models(facts.folder / names[k], models_of_folds)
            facts.products.record(names[k], keys[k])
    return names


def fit_blends(
    facts: Facts, trained: Sequence[Trained], gates: Mapping[str, str | None]
) -> tuple[dict[Noise, Blend], tuple[str, ...]]:
    """Fit the blends that are not there yet; return that of every noise, and their files.

    Parameters
    ----------
    facts
        Of the run, which holds the rows of every noise with predictions by the models of :func:`solve_folds`.
    trained
        Every noise with its moments and models.
    gates
        For the file of each noise's gate that of its held-out probabilities, in the same order; None where the gate is
        to be asked itself.
    """
    noises = [one.noise for one in trained]
    names = [blend_file(noise) for noise in noises]
    keys = [
        content_hash([BLEND_ALGORITHM, facts.products[gate], facts.products[rows_file(noise)]])
        for gate, noise in zip(gates, noises, strict=True)
    ]
    jobs = [
        BlendJob(
            rows=str(facts.folder / rows_file(noise)),
            fold_models=str(facts.folder / fold_models_file(noise)),
            gate=str(facts.folder / gate),
            held_out=None if held_out is None else str(facts.folder / held_out),
            grid=grid_items(facts.grid),
        )
        for noise, (gate, held_out) in zip(noises, gates.items(), strict=True)
    ]
    missing = [k for k, name in enumerate(names) if not facts.products.is_made(name, keys[k])]
    if missing:
        for place, plain in fit_blend_jobs([jobs[k] for k in missing], client=facts.client, progress=facts.progress):
            k = missing[place]
            with replacing(facts.folder / names[k]) as temporary:
                temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")
            facts.products.record(names[k], keys[k])
    blends = {noise: read_json(facts.folder / name, Blend.from_dict) for noise, name in zip(noises, names, strict=True)}
    return blends, tuple(names)
