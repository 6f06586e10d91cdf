"""The compiled step: ``step.cpp``, compiled for this machine on first use, and an epoch of training by it.

Run as a program, it compiles the step or says why it can't.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import joblib
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from imavae.config.settings import RunConfig
from imavae.data.dataset import Split
from imavae.errors import UserError
from imavae.model.networks import MLP
from imavae.model.priors import Beta, BetaPrior, Gaussian, GaussianPrior, Laplace, LaplacePrior, Uniform, UniformPrior
from imavae.model.vae import GAMMA, VAE
from imavae.training.batches import NOISE_STEPS
from imavae.training.ensemble import Ensemble, State

SOURCE = Path(__file__).with_name("step.cpp")
# Adam must see NaN, so no -ffast-math; a product and a sum may be fused.
FLAGS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
NOISE_NUMBERS = 2**16  # numbers of noise drawn at once, at most, unless NOISE_STEPS steps need more
ACTIVATIONS = ("leaky_relu", "tanh", "silu", "softplus")  # in the order of step.cpp, as the priors below
PRIOR_KINDS = (Uniform, Beta, Gaussian, Laplace)


class _Model(ctypes.Structure):
    """``Model`` of step.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("latent", "observed", "encoder_maps", "decoder_maps")),
        *((name, ctypes.c_int32) for name in ("activation", "prior", "free", "learned_gamma")),
        ("encoder", ctypes.POINTER(ctypes.c_int32)),
        ("decoder", ctypes.POINTER(ctypes.c_int32)),
        *((name, ctypes.c_float) for name in ("slope", "low", "range")),
        ("theta", ctypes.c_float * 2),
        ("decay", ctypes.c_float * 2),
    )


def chosen(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """The step that trains a run on ``device``, compiled or autograd, and the reason in words.

    Raises UserError for ``training.step=compiled`` where the step can't be compiled or does not support a setting.
    """
    model, training = config.model, config.training
    if training.step == "autograd":
        return "autograd", "training.step=autograd"
    parameters = getattr(model.prior, "parameters", "fixed")
    known = type(model.prior) in (UniformPrior, BetaPrior, GaussianPrior, LaplacePrior)
    refused = {
        f"training.device={device.type}": device.type != "cpu",
        f"training.dtype={training.dtype}": training.dtype != "float32",
        f"data={config.data.kind}": config.data.has_images,
        f"model={model.name}": model.name != "mlp",
        f"model.decoder={model.decoder}": model.decoder == "mixing",
        f"model/prior={model.prior.name}": not known,
        f"model.prior.parameters={parameters}": parameters == "conditional",
        f"model.posterior={model.posterior}": model.posterior != "diagonal",
        f"model.kl={model.kl}": model.kl == "analytic",
        f"model.ima_weight={model.ima_weight:g}": model.ima_weight > 0,
        f"training.clip={training.clip}": training.clip is not None,
    }
    reason = next((f"{setting} needs autograd" for setting, true in refused.items() if true), None)
    if reason is None:
        try:
            library()
            return "compiled", "float32 on a CPU"
        except CompilationError as error:
            reason = str(error)
    if training.step == "compiled":
        raise UserError(f"training.step=compiled can't be had: {reason}; set training.step=auto")
    return "autograd", reason


class CompilationError(Exception):
    """The step can't be compiled here; the message says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled step, loaded; it is compiled first if this machine has not done so yet.

    The file's name depends on the source, the compiler, its flags and the processor. Processes that start together
    wait for the first of them. Raises CompilationError if there is no compiler, or it fails.
    """
    names = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    compiler = next((name for name in names if name and shutil.which(name[0])), None)
    if compiler is None:
        raise CompilationError("no C++ compiler was found (c++, g++ or clang++; CXX names another)")
    target = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = [*compiler, *FLAGS, target]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
        key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, *map(str.encode, command), _processor()]))
        path = _cache() / f"step-{key.hexdigest()[:16]}.so"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                compile_to(path, command)
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError:  # it may be damaged
                compile_to(path, command)
                loaded = ctypes.CDLL(str(path))
    except OSError as error:  # as on a file system that is full, or forbids execution
        raise CompilationError(f"the step can't be compiled here: {error}") from None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    loaded.train.argtypes = [ctypes.POINTER(_Model), *[pointer] * 8, number, ctypes.c_int32, ctypes.c_float]
    loaded.train.restype = loaded.parameters.restype = number
    return loaded


def compile_to(path: Path, command: list[str]) -> None:
    """Compile step.cpp with ``command``; ``path`` is there when it is whole. Raises CompilationError."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(descriptor)
    try:
        done = subprocess.run([*command, str(SOURCE), "-o", aside], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilationError(f"{command[0]} failed: {(done.stderr.splitlines() or [''])[-1]}")
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _processor() -> bytes:
    """The processor and what it can do, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        names = (b"model name", b"flags", b"Features")
        return b"\n".join(sorted({line for line in lines if line.startswith(names)}))
    return platform.processor().encode()


def _cache() -> Path:
    """A folder of the user's that can be written, for compiled files; a private temporary one where there is none."""
    wanted = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with suppress(OSError):
        folder = Path(wanted, "imavae")
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_absolute() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="imavae-")


def thread_count() -> int:
    """Threads of the compiled step: IMAVAE_STEP_THREADS, else OMP_NUM_THREADS, else one a core.

    No number depends on it. Workers of a study on this machine may use all of its cores; elsewhere Ray sets
    OMP_NUM_THREADS to a trial's share.
    """
    given = os.environ.get("IMAVAE_STEP_THREADS") or os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() and int(given) else int(joblib.cpu_count())


def train_epoch(
    ensemble: Ensemble,
    state: State,
    data: Split,
    beta: Float[Tensor, " active"],
    sizes: Float[Tensor, "step active"],
    epsilons: Float[Tensor, "step active"],
    decay: tuple[float, float],
) -> None:
    """Move the active members over one epoch; ``sizes`` and ``epsilons`` are Adam's, ``decay`` its moments'.

    Order and noise are those of :func:`imavae.training.batches.batches`, number for number.
    """
    loaded, model = library(), _model(ensemble, decay)
    parameters = loaded.parameters(ctypes.byref(model))
    assert parameters == state.weights.shape[1], (parameters, state.weights.shape)  # noqa: S101
    moved = (state.weights, state.first, state.second)
    for tensor in (*moved, data.observations):
        sound = tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
        assert sound, tensor  # noqa: S101
    assert data.observations.shape[2] == model.observed, data.observations.shape  # noqa: S101
    n, batch, steps = len(data), ensemble.config.training.batch_size, len(sizes)
    worlds, betas, alive = ensemble.world_of(state.active).tolist(), beta.tolist(), state.finite.tolist()
    sizes, epsilons = sizes.T.contiguous(), epsilons.expand(steps, len(betas)).T.contiguous()
    assert sizes.shape == epsilons.shape == (len(betas), -(-n // batch)), sizes.shape  # noqa: S101
    pieces = _pieces(n, batch, ensemble.model.dim)

    def train(rows: list[int]) -> None:  # of one seed: the first of them draws for all
        order = torch.randperm(n, generator=state.batches[rows[0]], dtype=torch.int32)
        buffer = torch.empty(max(count * size for _, count, size in pieces) * model.latent)
        done = 0
        for start, count, size in pieces:
            noise = buffer[: count * model.latent * size].normal_(generator=state.noise[rows[0]])
            for row in rows:
                if alive[row]:
                    given = (order[start:], noise, sizes[row, done:], epsilons[row, done:])
                    into = (tensor[row].data_ptr() for tensor in moved)
                    x = data.observations[worlds[row]].data_ptr()
                    at = (x, *(tensor.data_ptr() for tensor in given))
                    alive[row] = count == loaded.train(ctypes.byref(model), *into, *at, count, size, betas[row])
            done += count
        for row in rows[1:]:
            for generators in (state.batches, state.noise):
                generators[row].set_state(generators[rows[0]].get_state())

    threads = thread_count()
    parts = _parts([ensemble.members[row].seed for row in state.active.tolist()], threads)
    if threads == 1 or len(parts) == 1:
        for part in parts:
            train(part)
    else:
        with ThreadPoolExecutor(min(threads, len(parts))) as pool:
            list(pool.map(train, parts))
    state.steps += steps
    state.finite &= torch.tensor(alive)


def _parts(seeds: list[int], threads: int) -> list[list[int]]:
    """Positions of members with equal seeds, which share their draws, in at least ``threads`` parts if there are so
    many members.
    """
    groups: dict[int, list[int]] = {}
    for row, seed in enumerate(seeds):
        groups.setdefault(seed, []).append(row)
    cuts = -(-threads // len(groups))
    return [part for group in groups.values() for i in range(cuts) if (part := group[i::cuts])]


def _pieces(n: int, batch: int, dim: int) -> list[tuple[int, int, int]]:
    """An epoch in draws of noise: the first observation, the number of steps, the size of their batches.

    torch fills 16 numbers after 16, so several times NOISE_STEPS steps in one draw give the same numbers.
    """
    full = n // batch
    whole = full // NOISE_STEPS * NOISE_STEPS
    at_once = NOISE_STEPS * max(1, NOISE_NUMBERS // (NOISE_STEPS * dim * batch))
    pieces = [(start * batch, min(at_once, whole - start), batch) for start in range(0, whole, at_once)]
    rest = [(whole * batch, full - whole, batch)] if full > whole else []
    return [*pieces, *rest, *([(full * batch, 1, n % batch)] if n % batch else [])]


def _model(ensemble: Ensemble, decay: tuple[float, float]) -> _Model:
    model: VAE = ensemble.model
    encoder, decoder, prior = model.encoder, model.decoder, model.prior
    assert isinstance(encoder, MLP), encoder  # noqa: S101  -- see chosen
    assert isinstance(decoder, MLP), decoder  # noqa: S101
    assert list(model.layout.shapes)[-1] == GAMMA, model.layout  # noqa: S101
    bounded = isinstance(prior, Uniform | Beta)
    low, high = prior.support if bounded else (0.0, 0.0)
    return _Model(
        latent=model.dim,
        observed=ensemble.config.data.features,
        encoder_maps=encoder.n_layers,
        decoder_maps=decoder.n_layers,
        activation=ACTIVATIONS.index(encoder.activation),
        prior=PRIOR_KINDS.index(type(prior)),
        free=len(prior.free) if model.learned_prior else 0,
        learned_gamma=ensemble.config.model.precision == "learned",
        encoder=(ctypes.c_int32 * len(encoder.sizes))(*encoder.sizes),
        decoder=(ctypes.c_int32 * len(decoder.sizes))(*decoder.sizes),
        slope=encoder.slope,
        low=low,
        range=high - low,
        theta=(ctypes.c_float * 2)(*prior.start),
        decay=(ctypes.c_float * 2)(*decay),
    )


if __name__ == "__main__":
    try:
        library()
        print("the training step is compiled")
    except CompilationError as reason:
        print(f"warning: {reason}; runs train by autograd, several times slower")
