"""Stands before the package of that name, which builds 40 parsers as it is imported: see conftest."""

raise ImportError("not in the tests: it takes a second of CPU in each process that imports jsonschema")
