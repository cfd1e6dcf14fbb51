"""The images of a trace, as pictures to be scored."""

from contextlib import closing
from pathlib import Path

from metrics.pictures import Picture
from tracer.store import Store

_IMAGES = """
SELECT s.image, s.prompt, s.seed, r.method, s.prompt_id,
       list_transform(from_json(s.targets, '["JSON"]'), lambda t: t->>'text'), r.run_id,
       count(DISTINCT r.method_params::VARCHAR) OVER (PARTITION BY r.method) > 1 AS variants
FROM samples s JOIN runs r USING (run_id) WHERE s.image_sha256 IS NOT NULL AND s.image <> ''
ORDER BY s.run_id, s.sample"""


def pictures_of(trace: Store) -> list[Picture]:
    """Return a trace's finished images that lie in files; a method that ran with several parameters is told by its run.

    Raises:
        FileNotFoundError: a file is not where the trace says.
    """
    folder = trace.path.resolve().parent
    with closing(trace.cursor()) as cursor:
        rows = cursor.execute(_IMAGES).fetchall()
    pictures = []
    for path, prompt, seed, method, prompt_id, targets, run, variants in rows:
        file = next((one for one in (folder / path, Path(path)) if one.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{trace.path} names the image {path}, which is not there, nor at {folder / path}")
        name = f"{method} (run {run})" if variants else method
        pictures.append(Picture(file, prompt, seed, name, prompt_id or prompt, tuple(targets or ())))
    return pictures
