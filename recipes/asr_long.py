r"""Long audio: training steps of sparse and dense encoders, and an hour transcribed in one pass.

    python recipes/asr_long.py --out out/long                     # training steps alone
    python recipes/asr_long.py --models out/sentences/model out/global/model \
        --cuts speech.jsonl --hours 1 --out out/long

The clips of --cuts are joined, and joined again in another order, until the recording is as long
as wanted: give clips that the models were not trained on. Each model transcribes it in one pass, in
chunks, and clip by clip. Every row is measured in a process of its own and stopped at
--limits.seconds and --limits.gib; run again, the command goes on where it was interrupted.
"""

import sys
from pathlib import Path

from speechkit import joining, manifests
from speechkit.asr.long_report import LongAudioConfig, measure
from speechkit.cli import run_recipe
from speechkit.errors import RequestError
from speechkit.joining import JoinConfig


def asr_long(
    *,
    out: Path,
    models: list[Path] | None = None,
    cuts: list[Path] | None = None,
    hours: float = 1.0,
    config: LongAudioConfig = LongAudioConfig(),
) -> None:
    """Measure training steps by length of utterance, and ways to transcribe a long recording.

    Parameters
    ----------
    out
        gets report.json, report.md, steps.png, rows/ (a file a measurement) and hour/ (the audio).
    models
        model folders to transcribe with; without any, training steps alone are measured.
    cuts
        manifests of transcribed clips that the models have not seen.
    hours
        length of the recording that is made of them.
    """
    if bool(models) != bool(cuts):
        raise RequestError("models and cuts: give both, or neither to measure training steps alone")
    clips = []
    if cuts:
        length_s = 3600 * hours
        spoken = [cut for cut in manifests.read_all(cuts) if manifests.text_of(cut)]
        whole = JoinConfig(clips=None, length_s=(length_s, length_s), recordings=1)
        joining.join(spoken, out / "hour", whole)
        clips = list(manifests.read(out / "hour" / f"{joining.UTTERANCES}.jsonl.gz"))
    measure(models or [], clips, out=out, config=config)
    print((out / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_recipe(asr_long))
