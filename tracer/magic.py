"""`%load_ext tracer`: a trace asked in SQL, in a notebook's cell.

    %%sql run.duckdb -o shares      (a file, or the name of a Store; if none is named, the last one)
Conventions: a cell is one query, which can write nothing; ``$word`` in it is the notebook's variable, bound.
"""

from contextlib import closing, nullcontext

import pandas as pd
from IPython.core import error, magic, magic_arguments

from tracer.store import Store


@magic.magics_class
class TraceSQL(magic.Magics):
    """The magic `%%sql`."""

    asked: Store | str = ""

    @magic_arguments.magic_arguments()
    @magic_arguments.argument("store", nargs="?", help="file of a trace, or a Store's name; if none, the last one")
    @magic_arguments.argument("-o", "--out", help="variable that takes the table, which is not shown then")
    @magic.cell_magic
    def sql(self, line: str, cell: str) -> pd.DataFrame | None:
        """Return the table that a query gives; $name in it is the notebook's variable, bound and never pasted in."""
        asked, names = magic_arguments.parse_argstring(self.sql, line), self.shell.user_ns  # pyright: ignore
        self.asked = named if isinstance(named := names.get(asked.store), Store) else asked.store or self.asked
        if not self.asked:
            raise error.UsageError("%%sql must name a trace the first time, such as %%sql run.duckdb")
        opened = nullcontext(self.asked) if isinstance(self.asked, Store) else Store.open(self.asked)
        with opened as store, closing(store.cursor()) as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            queries = cursor.extract_statements(cell)
            if [query.type.name for query in queries] != ["SELECT"]:
                raise error.UsageError("a %%sql cell must be one query that reads: SELECT, FROM, DESCRIBE, ...")
            found = {name: names[name] for name in queries[0].named_parameters & set(names)}
            plain = {name: one.item() if getattr(one, "shape", 0) == () else one for name, one in found.items()}
            table = cursor.execute(queries[0], plain or None).df()  # of numpy's numbers DuckDB takes none
        return table if asked.out is None else names.update({asked.out: table})
