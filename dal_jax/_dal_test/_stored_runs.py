"""Tests stored in a run directory: resumable, and shared by processes and hosts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._dal_test._image import ImageToTest, covariance_of
from dal_jax._dal_test._many_tests import stream_tests
from dal_jax._dal_test._options import TestOptions
from dal_jax._dal_test._result import TestResult, as_record, contradiction
from dal_jax._version import __version__
from dal_jax.inference import Noise
from dal_jax.localizers import Localizer
from dal_jax.runs import Host, RunDirectory, fingerprint, open_run, share, wait_for_hosts


class QueuedImage(NamedTuple):
    """One image of a run.

    Example:
        >>> import numpy as np
        >>> image = ImageToTest(np.ones((2, 2, 1)), np.zeros((2, 2, 1)))
        >>> item = QueuedImage("a.png", None, lambda: image)
        >>> item.load().image.shape
        (2, 2, 1)
    """

    name: str  # in the records
    identity: Any  # what tells its content from another's; None: its name alone does
    load: Callable[[], ImageToTest]  # when its turn comes

    def case(self) -> ImageToTest:
        """The loaded case, known by the item's name: by that, not by its place, it is randomized.

        Returns:
            The case.

        Raises:
            InputError: of the loading.
        """
        return self.load()._replace(name=self.name)


def run_tests(
    directory: str | Path,
    localizer: Localizer,
    items: Sequence[QueuedImage],
    noise: Noise | str,
    options: TestOptions,
    *,
    host: Host = Host(0, 1),  # noqa: B008 (a constant)
    shared: Any = None,
    own_draws: bool = False,
    batch_size: int | None = None,
    devices: Any = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
    keep: Callable[[QueuedImage, TestResult], None] | None = None,
) -> RunDirectory:
    """Tests the images that a run directory does not hold yet, and files each result at once.

    How many processes or devices there are, and interruptions, change results as little as the
    images beside an image do (see `dal_test_batch`). A finished test is never repeated: its record
    stays as it was written.

    Args:
        directory: of the run; made, or continued if it is of the same run.
        localizer: as in `dal_test`.
        items: the images; the same in all processes.
        noise: covariance of one image.
        options: of the tests.
        host: this process among those that share the run.
        shared: what else decides the results, for the fingerprint: references, for instance.
        own_draws: whether the images bring their draws.
        batch_size: as in `dal_test_batch`.
        devices: as in `dal_test_batch`.
        progress: called with the number of results that are there and the latest record; once at
            the start with an empty record.
        keep: called with each image and its whole result, before the record is filed.

    Returns:
        The run; its process 0 has collected the records in results.jsonl.

    Raises:
        InputError: an argument that does not fit, or the directory of another run.
        RunError: the disk is full, or another process was lost.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax import from_score
        >>> def brightness(params, draws, x):
        ...     return x[..., 0]
        >>> localizer, x = from_score(brightness, (1, 1, 1), 2.5), np.full((1, 1, 1), 3.0)
        >>> items = [QueuedImage("a.png", None, lambda: ImageToTest(x, np.zeros_like(x)))]
        >>> with TemporaryDirectory() as folder:
        ...     run_tests(folder, localizer, items, "iid:1.0", TestOptions()).finished()[0]["name"]
        'a.png'
    """
    covariance = covariance_of(noise, localizer)
    what = {"program": "dal_jax", "version": __version__, "options": repr(options)}
    parts = (
        "dal-test",
        __version__,
        localizer,
        covariance,
        options,
        shared,
        own_draws,
        [(item.name, item.identity) for item in items],
    )
    run = open_run(directory, fingerprint(*parts), len(items), what, contradiction)
    finished = run.finished()
    wait_for_hosts("start")  # all have read what is finished before the first one writes
    if progress is not None:
        progress(len(finished), {})
    mine = share([task for task in range(len(items)) if task not in finished], host)
    if mine:
        cases = ((task, items[task].case) for task in mine)
        streamed = stream_tests(
            localizer,
            cases,
            covariance,
            options,
            own_draws=own_draws,
            batch_size=batch_size,
            devices=devices,
        )
        with run.writer(host.index) as shard:
            for done, (task, result) in enumerate(streamed, 1):
                if keep is not None:
                    keep(items[task], result)
                record = {"name": items[task].name, **as_record(result)}
                shard.append(task, record)
                if progress is not None:
                    progress(len(finished) + done, record)
    wait_for_hosts("end")
    if host.index == 0:
        run.collect()
    return run
