#!/bin/sh
# Packs the binary of binary.sh as a Python wheel without Python code: pip puts the binary beside the interpreter.
set -eu
. "$(dirname "$0")/common.sh"

tag=py3-none-manylinux_$(echo "$glibc" | tr . _)_$architecture
folder=$(mktemp -d)
scripts=$folder/cellkeep-$version.data/scripts
info=$folder/cellkeep-$version.dist-info
mkdir -p "$scripts" "$info/licenses"
install -m 755 "$binary" "$scripts/cellkeep"
cp "$repository/LICENSE-MIT" "$repository/LICENSE-APACHE" "$info/licenses"
field() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" "$repository/Cargo.toml" | head -n 1; }
cat >"$info/METADATA" <<END
Metadata-Version: 2.4
Name: cellkeep
Version: $version
Summary: $(field description)
License-Expression: $(field license)
License-File: LICENSE-MIT
License-File: LICENSE-APACHE
Project-URL: Repository, $(field repository)
Keywords: jupyter,notebook,sandbox,kernel,code-interpreter
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Rust
Description-Content-Type: text/markdown

$(cat "$repository/README.md")
END
cat >"$info/WHEEL" <<END
Wheel-Version: 1.0
Generator: cellkeep
Root-Is-Purelib: false
Tag: $tag
END
"$tools/venv/bin/python" -m wheel pack --dest-dir "$artifacts" "$folder" >/dev/null
rm -r "$folder"
made "$artifacts/cellkeep-$version-$tag.whl"
