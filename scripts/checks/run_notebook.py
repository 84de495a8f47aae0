"""Executes notebooks/labels.ipynb from top to bottom and fails on the first error.

    python scripts/checks/run_notebook.py [--labels LABELS.parquet] [--pairs PAIRS]
                                          [--views VIEWS.sql] [--html OUT.html]

Works from any folder. The notebook itself is not changed; --html writes a copy with its results.
Without --labels and --pairs it reads what `make relabel` writes. The packages it needs are those of
notebooks/requirements.txt.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "notebook", nargs="?", default=ROOT / "notebooks/labels.ipynb", type=pathlib.Path
    )
    parser.add_argument("--labels", help="the labels file [default: data/labels.parquet]")
    parser.add_argument(
        "--pairs", help="the labelled pairs, for the images [default: data/sample]"
    )
    parser.add_argument(
        "--views", help="views for other scorers [default: schemas/duckdb/labels.sql]"
    )
    parser.add_argument("--html", type=pathlib.Path, help="write a copy with results here")
    parser.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="per cell [default: 600]"
    )
    arguments = parser.parse_args()

    # Paths are relative to where the user stands; the notebook runs in its own folder.
    for variable in ("LABELS", "PAIRS", "VIEWS"):
        path = getattr(arguments, variable.lower()) or os.environ.get(variable)
        if path:
            os.environ[variable] = os.path.abspath(path)

    with tempfile.TemporaryDirectory() as scratch:
        # The kernel of this very Python, without the user's startup files.
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        os.environ["JUPYTER_RUNTIME_DIR"] = scratch
        os.environ["IPYTHONDIR"] = scratch
        return execute(arguments)


def execute(arguments: argparse.Namespace) -> int:
    # Imported here because jupyter reads the environment when it is imported.
    import nbclient
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        notebook = nbformat.read(arguments.notebook, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        print(
            f"error: {arguments.notebook}: not a notebook that can be read: {error}",
            file=sys.stderr,
        )
        return 1
    client = nbclient.NotebookClient(
        notebook,
        timeout=arguments.timeout,
        kernel_name="python3",
        # Its hint about encryption concerns servers, and would be the only line on stderr.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(arguments.notebook.resolve().parent)}},
    )
    status = 0
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError) as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        print(f"error: {arguments.notebook}: failed\n{report}", file=sys.stderr)
        status = 1
    if arguments.html:
        from nbconvert import HTMLExporter

        page, _ = HTMLExporter().from_notebook_node(notebook)
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(page, encoding="utf-8")
        print(f"page: {arguments.html}")
    if status == 0:
        cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        print(f"{arguments.notebook}: {cells} cells executed without an error")
    return status


if __name__ == "__main__":
    sys.exit(main())
