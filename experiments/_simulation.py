"""Simulated images: noise of a known law, with a raised square in some."""

from dataclasses import dataclass

import numpy as np

from dal_jax import ImageToTest, InputError
from dal_jax.noise import Covariance, iid, parse_noise
from experiments._families import FAMILIES, family_at

# Streams of random numbers, apart for training, tested images and images that the noise is
# estimated from.
TRAINING, TESTING, NORMAL = 0, 1, 2
SAME, OTHERS = "estimate:same", "estimate:normal:"


@dataclass(frozen=True)
class Simulation:
    """Images x = s + e and references x_ref = e_ref; e, e_ref of one law, s a raised square or 0.

    The references of an image are independent; those of more begin with those of fewer.

    Raises:
        InputError: a value does not fit.
    """

    size: int  # side, pixels
    noise: str = "iid:1"  # covariance of e, as `parse_noise` takes it
    signal: float = 0.0  # height of the square, units of the image
    family: str = "normal"  # else one of `FAMILIES`: independent, not Gaussian pixels
    distance: float = 0.0  # 1-Wasserstein, of a pixel's law from N(0, 1)
    seed: int = 0
    references: int = 1  # of an image

    def __post_init__(self) -> None:
        for name in ("size", "references"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.family != "normal":
            if self.family not in FAMILIES:
                known = ", ".join(["normal", *FAMILIES])
                raise InputError(f"family is {self.family!r}, expected one of {known}")
            if self.noise != "iid:1":
                raise InputError(
                    f"noise is {self.noise!r}, expected 'iid:1' with family {self.family!r}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.size, self.size, 1

    def case(self, number: int, draws_shape: tuple[int, ...], assumed: str = "") -> ImageToTest:
        """Draws an image, its references and the draws of its diffusion.

        They depend on the seed and the number alone, but for the signal: images of one number
        differ in the height of the square only.

        Args:
            number: of the image, 0 and above.
            draws_shape: of the localizer.
            assumed: "estimate:same" lets the test take the variance that this image has around
                its mean, "estimate:normal:M" that of M other normal images; else the test's own.

        Returns:
            The case.
        """
        image, references, draws, square = self._drawn(number, draws_shape)
        image = image + self.signal * square
        noise: Covariance | None = None
        if assumed == SAME:
            noise = iid(float(image.std(ddof=1)))
        elif assumed.startswith(OTHERS):
            others = np.random.default_rng((self.seed, NORMAL, number))
            images = [self._noise(others) for _ in range(int(assumed.removeprefix(OTHERS)))]
            noise = iid(float(np.sqrt(np.mean([one.var(ddof=1) for one in images]))))
        return ImageToTest(image, references, draws, noise)

    def square(self, number: int, draws_shape: tuple[int, ...]) -> np.ndarray:
        """Says where the square of an image is.

        Args:
            number: as in `case`.
            draws_shape: as in `case`.

        Returns:
            bool (H, W).
        """
        return self._drawn(number, draws_shape)[-1][..., 0] > 0

    def training_images(self, count: int) -> np.ndarray:
        """Draws normal images to train on.

        Args:
            count: number of images.

        Returns:
            float32 (count, H, W, C).
        """
        rng = np.random.default_rng((self.seed, TRAINING))
        images = np.empty((count, *self.shape), np.float32)
        for number in range(count):
            images[number] = self._noise(rng)
        return images

    def _drawn(self, number: int, draws_shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Noise of the image, references, draws and square; references but the first come last."""
        rng = np.random.default_rng((self.seed, TESTING, number))
        image, references = self._noise(rng), self._noise(rng)
        draws, square = rng.standard_normal(draws_shape), self._square(rng)
        if self.references > 1:
            others = [self._noise(rng) for _ in range(self.references - 1)]
            references = np.stack([references, *others])
        return image, references, draws, square

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        if self.family != "normal":
            return family_at(self.family, self.distance).sample(rng, self.shape)
        return parse_noise(self.noise, self.shape).sample(rng, self.shape)

    def _square(self, rng: np.random.Generator) -> np.ndarray:
        """1 inside, 0 outside; its side is a third of the image's (paper, section 5)."""
        side = max(1, self.size // 3)
        top, left = rng.integers(0, self.size - side + 1, 2)
        square = np.zeros(self.shape)
        square[top : top + side, left : left + side] = 1.0
        return square
