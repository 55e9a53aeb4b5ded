"""What a scene lies in: a room, noise that may change, a level."""

import math

import numpy as np

from speechkit.audio import Audio
from speechkit.augment import (
    active_power,
    change_gain,
    change_speed,
    loop_to,
    noise_gain,
    power,
    reverberate,
)
from speechkit.kws.scenes import Material, Scene, SceneConfig, pick

# how far a second noise lies below the first
_SECOND_BELOW_DB = (0.0, 12.0)


class Surroundings:
    """Draws them for scenes of ``samples``."""

    def __init__(self, material: Material, config: SceneConfig, *, samples: int) -> None:
        self.material = material
        self.config = config
        self.samples = samples

    def add_to(self, scene: Scene, rng: np.random.Generator) -> Audio:
        """Return the scene's audio in a room, under noise and at another level."""
        config, material = self.config, self.material
        audio = scene.audio
        if scene.as_heard:
            return change_gain(audio, rng.uniform(*config.gain_db))
        if material.responses and rng.random() < config.rir_probability:
            audio = reverberate(audio, pick(material.responses, rng).audio)
        speech = (
            active_power(audio)
            if scene.focus is None
            else power(audio[max(0, scene.focus.start) : scene.focus.end])
        )
        if rng.random() < config.noise_probability:
            noise = self._noise_at(speech, rng)
            if rng.random() < config.noise_change_probability:
                change = int(rng.integers(self.samples))
                noise[change:] = self._noise_at(speech, rng)[change:]
            audio = audio + noise
        return change_gain(audio, rng.uniform(*config.gain_db))

    def _noise_at(self, speech_power: float, rng: np.random.Generator) -> Audio:
        """Draw noise at an SNR; over no speech, at the level that ordinary speech would give it."""
        noise = self.noise(rng)
        snr_db = rng.uniform(*self.config.snr_db)
        gain = noise_gain(speech_power or 10 ** (-25 / 10), power(noise), snr_db)
        return np.float32(gain) * noise

    def noise(self, rng: np.random.Generator) -> Audio:
        """Draw noise of a scene's length: babble, or one recording or two, faster or slower."""
        material = self.material
        if material.negatives and rng.random() < self.config.babble_probability:
            return material.negative_by_length(rng)[0].looped(self.samples, rng)
        if not material.noises:
            return rng.standard_normal(self.samples, dtype=np.float32)
        # both at one speed, and only the part that is heard, since resampling is dear
        factor = rng.uniform(*self.config.noise_speed)
        samples = math.ceil(factor * self.samples) + 1
        noise = pick(material.noises, rng).looped(samples, rng)
        if rng.random() < self.config.second_noise_probability:
            second = pick(material.noises, rng).looped(samples, rng)
            gain = noise_gain(power(noise), power(second), rng.uniform(*_SECOND_BELOW_DB))
            noise = noise + np.float32(gain) * second
        return loop_to(change_speed(noise, factor), self.samples, rng)
