"""The benchmark: standard set, report, comparison and capacity model. Python 3.11, nothing but its library.

| module | owns |
|---|---|
| `cli` | the commands of `load-tests/bench` |
| `stage` | services, a fresh database, fresh nodes, one run of loadgen |
| `tests` | the standard set: what is run, in which order, with which arguments |
| `measures` | what is read from the reports, with gates, aims and peers' figures |
| `results` | the raw results, a line of JSON each |
| `machine` | what it all ran on |
| `report`, `svg` | docs/benchmarks.md and its plots |
| `compare` | two commits or settings, A B A B |
| `capacity`, `ten` | the capacity model, and ten nodes on one machine to hold it against |
"""
