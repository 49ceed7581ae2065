# Resolves and installs packages of Julia's registries for a package set, in a sandbox of its own; the manager calls it
# (src/manager/package_sets).
#
# Usage, in an empty workspace with `requirements.txt` (`Name` or `Name==version`, one a line), and `lock.txt` (a Project.toml, a line
# of dashes and a Manifest.toml) if the versions are decided already:
#
# - `julia install_packages.jl resolve` writes `lock.txt` and `packages.json`.
# - `julia install_packages.jl install` fills `set/depot` and `set/env`, which sandboxes see in /opt/packages.

const SEPARATOR = "\n" * "-"^20 * "\n"
const PROJECT = joinpath("set", "env")
const BASE = "/opt/kernel/env"

# Before Pkg is loaded. The last entry is Julia's own depot.
ENV["JULIA_PKG_OFFLINE"] = "false"
ENV["JULIA_PROJECT"] = abspath(PROJECT)
ENV["TMPDIR"] = mkpath(abspath("tmp"))  # /tmp is too small for builds
empty!(DEPOT_PATH)
append!(DEPOT_PATH, [abspath("set", "depot"), "/opt/kernel/depot", joinpath(Sys.BINDIR, "..", "share", "julia")])

import Pkg

read_file(name) = read(joinpath(PROJECT, name), String)

function requirement(line)
    name, version = length(split(line, "==")) == 2 ? split(line, "==") : (line, nothing)
    version === nothing ? Pkg.PackageSpec(name=String(name)) : Pkg.PackageSpec(name=String(name), version=String(version))
end

"Makes the project of a lock, or of the kernel's own environment and the requirements."
function prepare()
    mkpath(PROJECT)
    if isfile("lock.txt")
        project, manifest = split(read("lock.txt", String), SEPARATOR; limit=2)
        write(joinpath(PROJECT, "Project.toml"), project)
        write(joinpath(PROJECT, "Manifest.toml"), manifest)
        Pkg.activate(PROJECT)
    else
        for file in ("Project.toml", "Manifest.toml")
            cp(joinpath(BASE, file), joinpath(PROJECT, file); force=true)
            chmod(joinpath(PROJECT, file), 0o644)
        end
        Pkg.activate(PROJECT)
        withenv("JULIA_PKG_PRECOMPILE_AUTO" => "0") do
            Pkg.add(requirement.(filter(!isempty, readlines("requirements.txt"))); preserve=Pkg.PRESERVE_TIERED_INSTALLED)
        end
    end
end

quoted(text) = "\"" * escape_string(string(text)) * "\""

function resolve()
    prepare()
    write("lock.txt", read_file("Project.toml") * SEPARATOR * read_file("Manifest.toml"))
    base = Dict(name => get(first(entries), "version", "") for (name, entries) in Pkg.TOML.parsefile(joinpath(BASE, "Manifest.toml"))["deps"])
    packages = String[]
    for info in values(Pkg.dependencies())
        info.version === nothing && continue
        before, version = get(base, info.name, nothing), string(info.version)
        replaces = before === nothing || before == version ? "" : ", \"replaces\": $(quoted(before))"
        push!(packages, "{\"name\": $(quoted(info.name)), \"version\": $(quoted(version)), \"installed\": $(before != version)$replaces}")
    end
    write("packages.json", "[" * join(packages, ", ") * "]")
end

function install()
    prepare()
    Pkg.instantiate()
    Pkg.precompile()
end

Dict("resolve" => resolve, "install" => install)[only(ARGS)]()
