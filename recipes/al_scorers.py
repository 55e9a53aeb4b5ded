r"""What expected gradient length costs, and how its forms rank clips, on one model and pool.

    python recipes/al_scorers.py --model MODEL --pool POOL --out out/scorers

MODEL is a recogniser's folder, POOL a manifest of transcribed clips that it was not trained on.
OUT/report.md holds a table of rank correlations over weights and numbers of hypotheses (gradients
of the output layer by default), and OUT/speed/report.md processor time a clip. Run it by one
thread (OMP_NUM_THREADS=1); the correlations resume.
"""

import sys
from pathlib import Path

from speechkit import manifests
from speechkit.active_learning import agreement, speed
from speechkit.active_learning.keyed import hash_of
from speechkit.active_learning.plots import plot_correlations
from speechkit.active_learning.speed import SpeedConfig
from speechkit.asr.recogniser import Recogniser
from speechkit.checkpoint import model_digest
from speechkit.cli import run_recipe
from speechkit.reports import provenance, write_report


def al_scorers(
    *,
    model: Path,
    pool: Path,
    out: Path,
    clips: int = 200,
    timed: int = 60,
    parameters: str = "output",
    config: SpeedConfig = SpeedConfig(),
) -> None:
    """Measure rank correlations and speed of scorers.

    Parameters
    ----------
    model
        the folder of a recogniser.
    pool
        a manifest of transcribed clips, or a folder with one.
    out
        gets report.json, report.md, correlations.png and speed/.
    clips, timed
        how many are ranked, and how many are timed: those with the lowest hashes of their ids; 0
        to leave it out.
    parameters
        of the gradients that are ranked: output, all, ...
    """
    cuts = sorted(manifests.read(pool), key=lambda cut: hash_of(cut.id))
    recogniser = Recogniser.load(model)
    recogniser.hear(cuts)
    data = {"model": model_digest(model), "pool": manifests.fingerprint(cuts)}
    origin = provenance(seed=0, data=data)
    if clips:
        folder = out / "scores" / "-".join((*data.values(), str(clips)))
        found = agreement.agreement(cuts[:clips], recogniser, parameters=parameters, folder=folder)
        plot_correlations(out / "correlations.png", found)
        write_report(out, {**origin, "agreement": found}, agreement.markdown(found))
        print(agreement.markdown(found))
    if timed:
        costs = speed.measure_speed(recogniser, cuts[:timed], config)
        write_report(out / "speed", {**origin, "speed": costs}, speed.markdown(costs))
        print(speed.markdown(costs))


if __name__ == "__main__":
    sys.exit(run_recipe(al_scorers))
