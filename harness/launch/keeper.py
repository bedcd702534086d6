"""What a supervisor does in the results folder: it claims runs and puts down how a worker died."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from harness.environment import utc_now
from harness.files import UNWRITABLE
from harness.foreign import log_tail
from harness.job import Job, failed_attempt
from harness.launch.claims import Claims
from harness.records import Results
from harness.spec import Spec


class ResultsError(RuntimeError):
    """The results folder cannot be written any more; what is finished is intact."""


class Keeper:
    """One supervisor's hand on a results folder. A disk that is full or lost, or a whole folder that takes no file any
    more, is a ResultsError; one run's folder that cannot be used is an OSError.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.claims = Claims(results.folder)

    def unwritable(self, why: str | None) -> ResultsError:
        return ResultsError(f"results folder {self.results.folder} cannot be written ({why}); what is finished is kept")

    def claim(self, run_id: str) -> bool:
        """False if another supervisor that is alive is at the run.

        Raises:
            ResultsError, OSError: as of the class.
        """
        with self._writing():
            return self.claims.take(run_id)

    def attempts_of(self, job: Job) -> dict[str, int]:
        """So many failed attempts of each of its works lie on the disk."""
        counts = {}
        for spec in job.works:
            counts[spec.id] = 0
            with suppress(OSError):
                names = os.listdir(self.results.run_folder(spec.id).attempts)
                counts[spec.id] = sum(name.endswith(".json") for name in names)
        return counts

    def put_down(
        self, spec: Spec, job: Job, before: Mapping[str, int], reason: str, how: str, peaks: Mapping[str, float]
    ) -> str:
        """Write a failed attempt of the work `spec` with the end of the job's log; its message.

        Args:
            before: `attempts_of` when the job began. If there is one more, a process has told before it was ended with
                the others, and one failure stays one attempt.

        Raises:
            ResultsError: as of the class.
        """
        if self.attempts_of(job)[spec.id] == before[spec.id]:
            text = log_tail(self.results.run_folder(job.spec.id).log)
            with suppress(OSError), self._writing():  # a folder that cannot be used costs the note, not the grid
                return self.results.fail(failed_attempt(spec, reason, how, text, utc_now(), peaks)).message
        return how

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in UNWRITABLE or not os.access(self.results.folder, os.W_OK | os.X_OK):
                raise self.unwritable(error.strerror) from error
            raise
