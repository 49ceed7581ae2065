# IJulia drops text of a cell beyond 512 KiB by itself. Cellkeep has a limit of its own, which it reports.
IJulia.set_max_stdio(typemax(Int))
